"""Gradient accumulation, mixed precision and compiling."""

from __future__ import annotations

import math

import attrs
import pytest
import torch

import mtlcore
from mtlcore.balancing import GramianBalancer
from mtlcore.config import Layer, resolve
from mtlcore.engine.compiling import backward_passes_allowed, compile_backbone
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.learner import Learner
from mtlcore.optimizers import GradientDescent, Schedule
from mtlcore.optimizers.loss_scale import LossScale
from mtlcore.plugins import Plugins
from mtlcore.runs import try_step
from mtlcore.standard.balancers import Uncertainty
from mtlcore.standard.optimizers import sgd
from mtlcore.testing import TinyBackbone, tiny_batch, tiny_learner

TINY = {
    "tasks": ["segmentation", "depth"],
    "data": {"train": 8, "val": 2, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"epochs": 1, "batch_size": 4},
}


class Deep(TinyBackbone):
    """With layers between whose backward pass the next one may write over what it has read."""

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        self.first = torch.nn.Sequential(
            *(layer for _ in range(3) for layer in (torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU()))
        )

    def forward(self, inputs, tasks):
        return super().forward(self.first(inputs), tasks)


class Half(GramianBalancer):
    def weights(self, gramian, context=None):
        return torch.full((len(gramian),), 0.5, dtype=torch.float64)


def frozen_statistics(learner: Learner) -> Learner:
    """Batch norm makes micro-batches see one another's statistics differently: keep them still."""
    for module in learner.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats = True
            module.eval()
    return learner


def split(batch, parts: int):
    size = len(batch) // parts
    for begin in range(0, len(batch), size):
        rows = slice(begin, begin + size)
        valid = {task: mask[rows] for task, mask in batch.valid.items()}
        yield attrs.evolve(
            batch,
            inputs=batch.inputs[rows],
            targets={task: target[rows] for task, target in batch.targets.items()},
            valid=valid,
            count={task: int(mask.sum()) for task, mask in valid.items()},
            labelled={task: known[rows] for task, known in batch.labelled.items()},
            view=batch.view[rows],
            keys=batch.keys[rows],
            meta=batch.meta[rows],
        )


@pytest.mark.parametrize("normalisation", ["valid", "sample", "labelled"])
@pytest.mark.parametrize("balancers", [(), (Half,), (Uncertainty,), (Uncertainty, Half)])
def test_accumulation_is_one_large_batch(balancers, normalisation: str) -> None:
    """Exact for balancers that are affine in the losses, with labels missing unevenly."""
    batch = tiny_batch(6)
    valid = {task: mask.clone() for task, mask in batch.valid.items()}
    # The first micro-batch has no normals at all, or (per sample) those of one sample only: there
    # the constant term of a loss balancer would weigh less without any.
    valid["normals"][: 2 if normalisation == "valid" else 1] = False
    batch = attrs.evolve(
        batch,
        valid=valid,
        count={t: int(v.sum()) for t, v in valid.items()},
        labelled={t: tuple(v.flatten(1).any(1).tolist()) for t, v in valid.items()},
    )
    results = []
    for parts in (1, 3):
        learner = tiny_learner(
            tuple(make() for make in balancers), normalisation=normalisation
        ).double()
        frozen_statistics(learner)
        optimizer = GradientDescent(
            learner, lambda groups: torch.optim.SGD(groups, lr=1.0), Schedule(), None
        )
        pieces = [attrs.evolve(piece, inputs=piece.inputs.double(), targets=_double(piece.targets))
                  for piece in split(batch, parts)]  # fmt: skip
        tasks = tuple(learner.model.tasks)
        episodes = tuple(Episode(tasks, support=i) for i in range(len(pieces)))
        report = optimizer.step(learner, LoadedPlan(tuple(pieces), episodes))
        assert report.skipped is None
        results.append((dict(learner.named_parameters()), report.losses))
    for name, parameter in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], parameter, rtol=1e-9, atol=1e-12)
    assert results[1][1] == pytest.approx(results[0][1])


def _double(targets):
    return {task: t.double() if t.is_floating_point() else t for task, t in targets.items()}


def test_accumulation_makes_fewer_steps() -> None:
    config = {**TINY, "training": {"epochs": 1, "batch_size": 2, "accumulate": 3}}
    resolved = resolve(Plugins(allow=()), (), [Layer("test", config)])
    assert try_step(resolved)["steps"] == 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(precision: str, tmp_path) -> None:
    whole = mtlcore.run(TINY, out=str(tmp_path / "fp32"))
    half = mtlcore.run(
        {**TINY, "training": {**TINY["training"], "precision": precision}},
        out=str(tmp_path / precision),
    )
    assert half["final"]["val"]["depth"]["loss"] != whole["final"]["val"]["depth"]["loss"]
    for task in TINY["tasks"]:
        loss = whole["final"]["val"][task]["loss"]
        assert half["final"]["val"][task]["loss"] == pytest.approx(loss, rel=0.1)


def test_the_loss_scale_cancels_out() -> None:
    """Gramians are not linear in the losses: rows are divided before the balancer sees them."""
    results = []
    for factor in (1.0, 1024.0):
        learner = tiny_learner((Half(),)).double()
        optimizer = GradientDescent(
            learner, lambda groups: torch.optim.SGD(groups, lr=1.0), Schedule(), None
        )
        optimizer._update._scale.factor = factor
        batch = tiny_batch(4)
        batch = attrs.evolve(batch, inputs=batch.inputs.double(), targets=_double(batch.targets))
        plan = LoadedPlan((batch,), (Episode(tuple(learner.model.tasks), support=0),))
        assert optimizer.step(learner, plan).skipped is None
        results.append(dict(learner.named_parameters()))
    for name, parameter in results[0].items():
        torch.testing.assert_close(results[1][name], parameter, rtol=1e-12, atol=1e-14)


def test_the_loss_scale_falls_and_rises() -> None:
    scale = LossScale(dynamic=True)
    start = scale.factor
    scale.update(finite=False)
    assert scale.factor == start / 2
    for _ in range(2000):
        scale.update(finite=True)
    assert scale.factor == start
    fixed = LossScale(dynamic=False)
    fixed.update(finite=False)
    assert fixed.factor == 1
    restored = LossScale(dynamic=True)
    restored.load_state_dict(scale.state_dict())
    assert restored.state_dict() == scale.state_dict()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_backbone_learns_the_same(tmp_path) -> None:
    plain = mtlcore.run(TINY, out=str(tmp_path / "plain"))
    compiled = mtlcore.run(
        {**TINY, "training": {**TINY["training"], "compile": True}}, out=str(tmp_path / "compiled")
    )
    for task in TINY["tasks"]:
        loss = plain["final"]["val"][task]["loss"]
        assert math.isclose(compiled["final"]["val"][task]["loss"], loss, rel_tol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_backbone_gives_every_task_its_gradient(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where torch's cache has the code for one pass, whose second one would be wrong."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for balancers in ((), (mtlcore.create("balancers", "pcgrad", order="fixed"),)):
        torch._dynamo.reset()
        weights = []
        for compiled in (False, True):
            learner = tiny_learner(balancers, backbone=Deep)
            optimizer = sgd(learner, lr=0.1)
            if compiled:
                compile_backbone(learner)
            # The last ones of an epoch are smaller, and compiled anew.
            for number, size in enumerate((4, 4, 3, 2)):
                plan = LoadedPlan((tiny_batch(size, seed=number),), (Episode(learner.tasks, 0),))
                with backward_passes_allowed(learner):
                    assert optimizer.step(learner, plan).skipped is None
            weights.append(learner.state_dict())
        for name, value in weights[0].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)
