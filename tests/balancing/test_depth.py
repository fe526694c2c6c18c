"""Gradients at the end of the trunk that stand for those of all of it, and what corrects them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import mtlcore
from mtlcore.balancing import (
    BalancerContext,
    Balancing,
    DepthSettings,
    GradientBalancer,
    GramianBalancer,
    LossBalancer,
)
from mtlcore.balancing.depth import DepthEstimate
from mtlcore.engine import price_told
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.features import Features
from mtlcore.models import Backbone
from mtlcore.optimizers import StepReport
from mtlcore.standard.optimizers import sgd
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner
from mtlcore.testing.base import same, state_of, through_checkpoint

BLOCKS = 4


class Deep(Backbone):
    """Four convolutions, each a block; counts the backward passes through each."""

    out_channels, strides, input_multiple = (4,), (1,), 1

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        widths = (3, 4, 4, 4, 4)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.passes = [0] * BLOCKS

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        x = inputs
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if x.requires_grad:
                x.register_hook(lambda _, number=number: self._count(number))
            x = x.tanh()
        return Features(shared=(x,), cut=(x,))

    def _count(self, number: int) -> None:
        self.passes[number] += 1

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return [list(layer.parameters()) for layer in self.layers]


class InverseNorms(GramianBalancer):
    """Weights 1 / norm; keeps the Gramians that it was asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        self.asked.append(gramian.clone())
        return gramian.diagonal().rsqrt()


class Drawing(GramianBalancer):
    """Weights that are partly drawn."""

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        drawn = torch.rand(len(gramian), generator=self.random(context), dtype=torch.float64)
        return gramian.diagonal().rsqrt() * (0.5 + drawn)


class Steps:
    """A learner and its optimizer."""

    def __init__(self, balancer: GramianBalancer | None = None, every: int = 1, **depth: Any):
        self.balancer = InverseNorms() if balancer is None else balancer
        settings = DepthSettings(**depth)
        self.learner = tiny_learner(
            [self.balancer], backbone=Deep, depth=settings, update_every=every
        ).double()
        self.optimizer = sgd(self.learner, lr=0.05)
        self.step = 0

    @property
    def passes(self) -> list[int]:
        return self.learner.model.backbone.passes  # type: ignore[return-value]

    def take(self, batches: int = 1, spoilt: bool = False, seed: int | None = None) -> StepReport:
        self.learner.model.backbone.passes = [0] * BLOCKS
        self.learner.context.step = self.step
        seed = self.step if seed is None else seed
        loaded = [tiny_batch(seed=10 * seed + n) for n in range(batches)]
        loaded = [attrs.evolve(b, inputs=b.inputs.double()) for b in loaded]
        if spoilt:
            loaded[0].inputs[0] = float("nan")
        episodes = tuple(Episode(self.learner.tasks, n) for n in range(batches))
        report = self.optimizer.step(self.learner, LoadedPlan(tuple(loaded), episodes))
        self.step += 1
        return report

    def state(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.learner.named_parameters()}


def close(first: dict[str, Tensor], second: dict[str, Tensor], within: float = 1e-12) -> bool:
    return all(torch.allclose(first[name], second[name], 0, within) for name in first)


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("depth", [BLOCKS, BLOCKS + 3])
def test_all_blocks_are_all_of_it(depth: int, batches: int) -> None:
    exact, steps = Steps(), Steps(depth=depth)
    for _ in range(3):
        assert exact.take(batches).skipped is steps.take(batches).skipped is None
    assert close(exact.state(), steps.state())


@pytest.mark.parametrize(
    ("depth", "passes"),
    [(1, [1, 1, 1, 4]), (2, [1, 1, 4, 4]), ("features", [1, 1, 1, 1])],
)
def test_a_pass_per_task_through_the_last_blocks_only(depth: Any, passes: list[int]) -> None:
    """The weighted losses, or gradients, take one pass more through everything."""
    steps = Steps(depth=depth)
    steps.take()
    assert steps.passes[0] == len(TINY_TASKS) + 1, "the first step measures all rows"
    steps.take()
    assert steps.passes == passes


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("depth", [1, 2, "features"])
def test_a_step_that_measures_is_exact(depth: Any, batches: int) -> None:
    exact, steps = Steps(), Steps(depth=depth, norms_every=1)
    for _ in range(3):
        exact.take(batches)
        steps.take(batches)
    for one, other in zip(exact.balancer.asked, steps.balancer.asked, strict=True):
        assert torch.allclose(one, other, 1e-9)
    assert close(exact.state(), steps.state(), 1e-9)


@pytest.mark.parametrize("depth", [1, "features"])
def test_lengths_of_rows_are_corrected(depth: Any) -> None:
    """At the same parameters, an estimate has the exact lengths; each task's, with norms."""
    steps = Steps(depth=depth, norms_every=100)
    common = Steps(depth=depth)
    for each in (steps, common):
        each.optimizer.state_dict()  # the learning rate is that of the schedule
        before = each.state()
        each.take(seed=0)
        each.learner.load_state_dict(before, strict=False)
        each.take(seed=0)
    first, second = steps.balancer.asked
    assert torch.allclose(first.diagonal(), second.diagonal(), 1e-9)
    assert not torch.allclose(first, second, 1e-3), "only the lengths were measured"
    first, second = common.balancer.asked
    assert torch.allclose(first.trace(), second.trace(), 1e-9)
    assert not torch.allclose(first.diagonal(), second.diagonal(), 1e-3)


@pytest.mark.parametrize("depth", [1, "features"])
@pytest.mark.parametrize("balancer", [InverseNorms, Drawing])
def test_looking_changes_nothing(balancer: type[GramianBalancer], depth: Any) -> None:
    plain, looking = Steps(balancer(), depth=depth), Steps(balancer(), depth=depth, verify_every=2)
    for number in range(5):
        plain.take()
        error = looking.take().balancing.error
        # Of the first step, whose rows are exact, there is nothing to verify.
        assert (error is not None) == (number in (2, 4))
        if error is not None:
            assert -1 < error.cosine < 1 - 1e-9
            assert 1e-6 < error.gramian < 2
    assert close(plain.state(), looking.state(), 0)


def test_a_measurement_counts_half_of_what_corrects() -> None:
    estimate = DepthEstimate(DepthSettings(depth=1, norms_every=1))
    here, seen = torch.eye(2, dtype=torch.float64), []

    def weights(gramian: Tensor) -> Tensor:
        seen.append(gramian.diagonal().tolist())
        return torch.ones(2, dtype=torch.float64)

    for turn, lengths in enumerate(([4.0, 9.0], [64.0, 9.0])):
        estimate.begin(turn)
        estimate.answer(
            ("a", "b"), here, torch.tensor(lengths).double().square().diag(), weights, None
        )
        estimate.commit()
    estimate.skip()
    estimate.answer(("a", "b"), here, None, weights, None)
    assert seen[-1] == pytest.approx([16.0**2, 9.0**2])  # the geometric means of 4, 64 and of 9, 9


def test_what_was_not_off_has_no_error() -> None:
    steps = Steps(Drawing(), depth=BLOCKS, verify_every=1)
    steps.take()
    error = steps.take().balancing.error
    assert error is not None
    assert error.cosine == pytest.approx(1, abs=1e-12)
    assert error.gramian == pytest.approx(0, abs=1e-12)


def test_between_updates_nothing_is_measured() -> None:
    steps = Steps(every=2, depth=1, norms_every=2)
    passes = []
    for _ in range(6):
        steps.take()
        passes.append(steps.passes[0])
    assert passes == [4, 1, 1, 1, 4, 1]


def test_a_skipped_step_measures_nothing() -> None:
    steps = Steps(depth=1)
    assert steps.take(spoilt=True).skipped is not None
    assert steps.learner.balancing.estimate.state_dict() == {}
    steps.take()
    assert steps.passes[0] == len(TINY_TASKS) + 1, "the next step does"


@pytest.mark.parametrize("settings", [{"depth": 1}, {"depth": "features", "norms_every": 3}])
def test_resumed_is_uninterrupted(settings: dict[str, Any]) -> None:
    steps, other = Steps(**settings), Steps(**settings)
    for _ in range(2):
        steps.take()
    other.learner.load_state_dict(through_checkpoint(state_of(steps.learner)))
    other.optimizer.load_state_dict(through_checkpoint(steps.optimizer.state_dict()))
    other.step = steps.step
    for _ in range(3):
        steps.take()
        other.take()
    assert same(state_of(steps.learner), state_of(other.learner))


def test_a_neck_of_all_tasks_is_the_last_block() -> None:
    tasks = (Task(name="a", kind="depth", channels=1), Task(name="b", kind="depth", channels=1))
    resnet = mtlcore.create(
        "backbones", "resnet", tasks, depth=18, width=0.125, pyramid=True, output_stride=32
    )
    from mtlcore.features import FeatureInfo
    from mtlcore.models import MultiTaskModel, SharedNeck

    neck = mtlcore.create("necks", "fpn", FeatureInfo.of(resnet), channels=8)
    heads = {t.name: mtlcore.create("heads", "conv", t, FeatureInfo.of(neck)) for t in tasks}
    model = MultiTaskModel(tasks, resnet, heads, neck=SharedNeck(neck))
    assert {id(p) for p in model.last_blocks(1)} == {id(p) for p in neck.parameters()}
    last = {id(p) for p in resnet.layer4[-1].parameters()}
    assert {id(p) for p in model.last_blocks(2)} - {id(p) for p in model.last_blocks(1)} == last
    everything = {id(p) for p in model.shared_parameters()}
    assert {id(p) for p in model.last_blocks(99)} == everything


class TwoMaps(Deep):
    """Segmentation reads a map that the others do not."""

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        maps = super().forward(inputs, tasks).shared
        own = {t: (maps[0] * 1.0 if t == "segmentation" else maps[0],) for t in tasks}
        return Features(per_task=own)


def test_maps_that_nobody_else_reads_are_told_of() -> None:
    learner = tiny_learner(
        [InverseNorms()], backbone=TwoMaps, depth=DepthSettings(depth="features")
    )
    plan = LoadedPlan((tiny_batch(),), (Episode(learner.tasks, 0),))
    optimizer = sgd(learner, lr=0.01)
    with pytest.warns(UserWarning, match="segmentation and depth read no map in common"):
        optimizer.step(learner, plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(learner, plan)


class Losses(LossBalancer):
    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        return losses


class Rows(GradientBalancer):
    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        return rows.sum(0)


class AtFeatures(InverseNorms):
    scope = "features"


class Two(InverseNorms):
    batches = 2


@pytest.mark.parametrize(
    ("balancer", "settings", "message"),
    [
        (Losses, {"depth": 1}, "needs a balancer that compares"),
        (Rows, {"depth": 1}, "say nothing of the layers before"),
        (Rows, {"depth": "features"}, "say nothing of the layers before"),
        (AtFeatures, {"depth": 1}, "a scope of its own, 'features'"),
        (Two, {"depth": 1}, "different batches"),
        (InverseNorms, {"norms_every": 2}, "balancer.norms_every: .* goes with balancer.depth"),
        (InverseNorms, {"verify_every": 2}, "balancer.verify_every: "),
    ],
)
def test_what_makes_no_sense_is_refused(
    balancer: type, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Balancing([balancer()], 1, DepthSettings(**settings))


def test_a_backbone_without_blocks_is_refused() -> None:
    learner = tiny_learner([InverseNorms()], depth=DepthSettings(depth=1))
    with pytest.raises(UsageError, match="TinyBackbone does not name its blocks"):
        learner.task_gradients()


def told(depth: Any) -> tuple[float, float]:
    steps = Steps(depth=depth)
    before = state_of(steps.learner)
    sentence = price_told(steps.learner, tiny_batch(1).inputs.double())
    assert same(before, state_of(steps.learner)), "it is left as it was"
    assert all(p.grad is None for p in steps.learner.parameters())
    taken, whole = (float(number) for number in re.findall(r"(\d+\.\d+) times", sentence))
    return taken, whole


def test_the_price_is_counted() -> None:
    """A forward pass is one part of three of a plain step; the trunk is most of the network."""
    prices = {depth: told(depth) for depth in (1, 2, BLOCKS, "features")}
    (whole,) = {whole for _, whole in prices.values()}
    assert 1.4 < whole < 7 / 3, "(1 + 3 * 2) / 3 without heads, which take no more than before"
    taken = [prices[depth][0] for depth in ("features", 1, 2, BLOCKS)]
    assert taken == sorted(taken)
    assert taken[0] == 1, "a pass through each head, and one through the trunk"
    assert taken[-1] > whole, "all blocks, and one pass more"
    assert price_told(Steps().learner, tiny_batch(1).inputs.double()) is None
