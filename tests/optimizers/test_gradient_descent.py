"""Learning rates, clipping and what a step makes of several batches; by plain arithmetic."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext
from mtlcore.data import Batch
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import MtlError
from mtlcore.features import Features
from mtlcore.learner import Learner
from mtlcore.losses import CrossTaskLoss
from mtlcore.optimizers import Optimizer, Schedule, StepReport
from mtlcore.optimizers.schedules import Plateau
from mtlcore.standard.optimizers import adam, sgd
from mtlcore.testing import TinyBackbone, tiny_batch, tiny_learner


class Brightness(CrossTaskLoss):
    """The mean brightness of a batch times a parameter of its own."""

    def __init__(self, **group: Any) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self._group = group

    def needs(self, batch: Batch, tasks: Iterable[str]) -> Iterable[str]:
        return []

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"brightness": batch.inputs.mean() * self.factor}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.factor], **self._group}] if self._group else []


def step(optimizer: Optimizer, learner: Learner, *batches: Batch) -> StepReport:
    episodes = tuple(Episode(learner.tasks, support=i) for i in range(len(batches)))
    return optimizer.step(learner, LoadedPlan(batches, episodes))


def moved(learner: Learner, before: list[Tensor]) -> float:
    """How far all parameters together have gone."""
    now = list(learner.parameters())
    return math.hypot(*(float((p.detach() - q).norm()) for p, q in zip(now, before, strict=True)))


def copies(learner: Learner) -> list[Tensor]:
    return [p.detach().clone() for p in learner.parameters()]


# Rates


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), {0.0: 1, 0.5: 1, 0.99: 1}),
        (
            Schedule(name="step", at=(0.25, 0.5), gamma=0.1),
            {0.0: 1, 0.249: 1, 0.25: 0.1, 0.499: 0.1, 0.5: 0.01, 0.99: 0.01},
        ),
        (Schedule(name="cosine"), {0.0: 1, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0}),
        (Schedule(name="poly"), {0.0: 1, 0.5: 0.5**0.9, 0.9: 0.1**0.9}),
        (Schedule(name="poly", power=2.0), {0.25: 0.5625}),
        (Schedule(warmup=0.1), {0.0: 0.01, 0.049: 0.5, 0.1: 1, 0.9: 1}),
        (Schedule(name="poly", power=1.0, warmup=0.5), {0.249: 0.5 * 0.751, 0.75: 0.25}),
        (Schedule(name="plateau"), {0.0: 1, 0.9: 1}),
    ],
)
def test_the_rate_over_a_run(schedule: Schedule, expected: dict[float, float]) -> None:
    found = {
        progress: schedule.factor(BalancerContext(tasks=(), progress=progress))
        for progress in expected
    }
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_a_plateau_is_torchs(patience: int) -> None:
    """Equal losses are no improvement; after a fall patience counts anew."""
    ours = Plateau(patience)
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=0.0, min_lr=0.0, eps=0.0
    )
    generator = torch.Generator().manual_seed(patience)
    draws = torch.randint(1, 9, (60,), generator=generator).tolist()
    for number, loss in enumerate(
        30 / (1 + number // 9) + draw for number, draw in enumerate(draws)
    ):
        ours.update({"depth": loss})
        theirs.step(loss)
        assert 0.5**ours.falls == optimizer.param_groups[0]["lr"], number
    assert ours.falls > 2


def test_a_plateau_follows_all_tasks_alike() -> None:
    """The large loss of one does not hide that the others have stopped; nor does a task without."""
    plateau = Plateau(0)
    for large, small in zip((900, 1000, 800, 810), (3.0, 1.0, 2.0, 2.5), strict=True):
        plateau.update({"price": large, "rooms": small, "view": small, "unknown": math.nan})
    assert plateau.falls == 2
    alone = Plateau(0)
    for loss in (3.0, 2.0, 1.0):
        alone.update({"known": loss, "unknown": math.nan})
    assert alone.falls == 0


def test_a_plateau_lowers_the_rate_of_the_steps_after_it() -> None:
    learner = tiny_learner()
    optimizer = sgd(learner, lr=0.5, schedule=Schedule(name="plateau", gamma=0.1, patience=0))
    rates = []
    for loss in (3.0, 3.0, 2.0, 2.0):
        rates.append(step(optimizer, learner, tiny_batch()).learning_rate)
        optimizer.after_evaluation({"depth": {"loss": loss - 1}, "normals": {"loss": 1.0}})
    rates.append(step(optimizer, learner, tiny_batch()).learning_rate)
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])


def test_a_group_has_its_own_rate_and_schedule() -> None:
    own = Brightness(lr=0.25, schedule=Schedule(name="step", at=(0.5,), gamma=0.1))
    learner = tiny_learner(cross_task=[own])
    optimizer = sgd(learner, lr=4.0, schedule=Schedule(name="poly", power=1.0))
    batch = tiny_batch()
    for progress, rate, shared in ((0.25, 0.25, 3.0), (0.75, 0.025, 1.0)):
        before = float(own.factor.detach())
        learner.context.progress = progress
        report = step(optimizer, learner, batch)
        assert report.learning_rate == pytest.approx(shared)
        gone = before - float(own.factor.detach())
        assert gone == pytest.approx(rate * float(batch.inputs.mean()), rel=1e-4)


# Steps


@pytest.mark.parametrize("part", [0.1, 0.9, 1.1, 10.0])
def test_the_gradient_is_shortened_to_the_limit_and_no_further(part: float) -> None:
    """A step of plain descent at a rate of 1 is as long as its gradient."""
    learner = tiny_learner()
    before = copies(learner)
    step(sgd(learner, lr=1.0), learner, tiny_batch())
    whole = moved(learner, before)
    learner = tiny_learner()
    step(sgd(learner, lr=1.0, clip=part * whole), learner, tiny_batch())
    assert moved(learner, before) == pytest.approx(min(part, 1.0) * whole, rel=1e-4)


def test_terms_of_batches_count_by_their_samples() -> None:
    """What is reported and what is learnt are those of one large batch."""
    parts = (tiny_batch(1, seed=1), tiny_batch(5, seed=2))
    own = Brightness()
    learner = tiny_learner(cross_task=[own])
    report = step(sgd(learner, lr=1.0), learner, *parts)
    mean = float(torch.cat([part.inputs for part in parts]).mean())
    assert report.cross == pytest.approx({"brightness": mean})
    assert 1 - float(own.factor.detach()) == pytest.approx(mean, rel=1e-5)


def test_a_reported_loss_is_the_mean_over_valid_pixels_of_all_batches() -> None:
    learner = tiny_learner().eval()
    parts = (tiny_batch(1, seed=1, masked=0.8), tiny_batch(5, seed=2, absent=["normals"]))
    expected: dict[str, float] = {}
    for task in learner.tasks:
        losses = [learner(part, [task]).raw.get(task) for part in parts]
        pairs = [
            (float(x.detach()), part.count[task])
            for x, part in zip(losses, parts, strict=True)
            if x is not None
        ]
        expected[task] = sum(x * n for x, n in pairs) / sum(n for _, n in pairs)
    assert step(adam(learner), learner, *parts).losses == pytest.approx(expected, rel=1e-5)


# States


@pytest.mark.parametrize("wrong", [None, "x", {"exp_avg": "x"}, []], ids=str)
def test_a_state_that_is_none_of_the_optimizer_is_told_in_its_first_step(wrong: Any) -> None:
    learner = tiny_learner()
    optimizer = adam(learner, lr=0.1)
    step(optimizer, learner, tiny_batch())
    state = copy.deepcopy(optimizer.state_dict())
    other = adam(learner, lr=0.1)
    other.load_state_dict(copy.deepcopy(state))
    step(other, learner, tiny_batch())
    moments = state["torch"]["state"][0]
    moments.update(wrong if isinstance(wrong, dict) else {"exp_avg_sq": wrong})
    other = adam(learner, lr=0.1)
    other.load_state_dict(state)
    with pytest.raises(MtlError, match="state of the optimizer does not fit it"):
        step(other, learner, tiny_batch())


def test_an_optimizer_that_fails_by_itself_is_not_put_down_to_a_checkpoint() -> None:
    learner = tiny_learner()
    optimizer = adam(learner, lr=0.1)
    step(optimizer, learner, tiny_batch())
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(optimizer, learner, tiny_batch())
    optimizer._update._torch.param_groups[0]["betas"] = "x"
    with pytest.raises(ValueError, match="unpack"):
        step(optimizer, learner, tiny_batch())


def test_what_a_backbone_lets_learn_alone_is_all_that_moves() -> None:
    """Heads rest too, and so do moments; the limit on the gradient is for what learns."""

    class InTurn(TinyBackbone):
        alone = False

        def learn_alone(self) -> list[nn.Parameter]:
            return [self.trunk[1].bias] if self.alone else []

    learner = tiny_learner(backbone=InTurn)
    optimizer = sgd(learner, lr=0.1, momentum=0.9, clip=1e-3)
    step(optimizer, learner, tiny_batch(4))
    learner.model.backbone.alone = True
    before = copies(learner)
    optimizer.reset_state(learner.parameters())
    step(optimizer, learner, tiny_batch(4))
    names = [name for name, _ in learner.named_parameters()]
    now = copies(learner)
    went = {name for name, p, q in zip(names, now, before, strict=True) if not torch.equal(p, q)}
    assert went == {"model.backbone.trunk.1.bias"}
    assert moved(learner, before) == pytest.approx(0.1 * 1e-3, rel=1e-3)
