"""Complex and sparse parameters and reentrant checkpoints in a run: right, or refused by name."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import mtlcore
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.learner import Learner
from mtlcore.optimizers import StepReport
from mtlcore.standard.optimizers import sgd
from mtlcore.testing import TinyBackbone, tiny_batch, tiny_learner


class Filtered(TinyBackbone):
    """With a complex factor and a row of a table on every channel of the image."""

    sparse = False

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        self.factor = nn.Parameter(torch.tensor([0.5 + 1j, 1.0 - 0.5j, 2j]))
        self.table = nn.Embedding(2, 3, sparse=self.sparse)

    def forward(self, inputs, tasks):
        factor = (self.factor * self.factor.conj() + self.factor).real
        row = self.table(torch.tensor(1))
        return super().forward(inputs * (factor + row)[None, :, None, None], tasks)


class Sparse(Filtered):
    sparse = True


class Reentrant(TinyBackbone):
    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        self.first = nn.Conv2d(3, 3, 1)

    def forward(self, inputs, tasks):
        def rest(x):
            return super(Reentrant, self).forward(x, tasks).shared[0]

        features = super().forward(self.first(inputs), tasks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = checkpoint(rest, self.first(inputs), use_reentrant=True)
        per_task = {
            task: tuple(x + again.mean() for x in maps) for task, maps in features.per_task.items()
        }
        return type(features)(shared=features.shared, per_task=per_task)


def learner_with(backbone: type[TinyBackbone], *balancers: str) -> Learner:
    return tiny_learner([mtlcore.create("balancers", b) for b in balancers], backbone=backbone)


def step(learner: Learner, broken: bool = False, **settings: float) -> StepReport:
    batch = tiny_batch(3)
    if broken:
        batch.inputs[0] = float("nan")
    plan = LoadedPlan((batch,), (Episode(learner.tasks, 0),))
    return sgd(learner, lr=0.1, **settings).step(learner, plan)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("chain", [(), ("pcgrad",), ("nash-mtl",)])
def test_a_complex_parameter_learns(chain: tuple[str, ...], clip: float | None) -> None:
    learner = learner_with(Filtered, *chain)
    before = learner.model.backbone.factor.detach().clone()
    assert step(learner, broken=True, clip=clip).skipped is not None
    assert torch.equal(learner.model.backbone.factor.detach(), before)
    assert step(learner, clip=clip).skipped is None
    assert bool((learner.model.backbone.factor.detach() != before).all())


@pytest.mark.parametrize("chain", [(), ("uncertainty",), ("pcgrad",), ("nash-mtl",)])
def test_a_sparse_gradient_is_refused(chain: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"shape \(2, 3\) is sparse"):
        step(learner_with(Sparse, *chain))


def test_a_reentrant_checkpoint_is_for_balancers_of_losses() -> None:
    assert step(learner_with(Reentrant, "uncertainty")).skipped is None
    for balancer in ("pcgrad", "nash-mtl"):
        with pytest.raises(UsageError, match="use_reentrant=False"):
            step(learner_with(Reentrant, balancer))
