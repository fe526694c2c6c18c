"""The terms against their equations, their contracts, and runs with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.tasks import Task
from mtlcore.teachers import Teacher
from mtlcore.testing import (
    TINY_TASKS,
    CrossTaskLossContract,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    assert_settings_are_checked,
    tiny_batch,
    tiny_learner,
)
from mtlcore_views.agreement import BYOL, MTSS, Agreement, SimCLR, pooled

NAMES = [task.name for task in TINY_TASKS]
INFO = FeatureInfo((6, 5), (2, 2))
# Of three images, each beside its second view, where a loader would put all of these last.
VIEWS = (0, 1, 0, 1, 0, 1)
SMALL = ("data.train=4", "data.val=2", "data.size=32x32", "data.workers=0", "device=cpu",
         "training.batch_size=2")  # fmt: skip


class TestSimCLR(CrossTaskLossContract):
    views = (0, 0, 1, 1)

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> SimCLR:
        return SimCLR(tasks, features)


class TestBYOL(CrossTaskLossContract):
    views = (0, 0, 1, 1)

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> BYOL:
        return BYOL(tasks, features, hidden=7, outputs=5)


class TestMTSS(CrossTaskLossContract):
    views = (0, 0, 1, 1)

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> MTSS:
        return MTSS(tasks, features)


class TestSimCLRMethod(MethodContract):
    method = "simclr"
    overrides = SMALL


class TestBYOLMethod(MethodContract):
    method = "byol"
    overrides = SMALL


class TestMTSSMethod(MethodContract):
    method = "mtss"
    overrides = SMALL


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_views.plugin")
    assert_plugin_is_whole("mtlcore_views.plugin")


def test_settings_are_checked() -> None:
    assert_settings_are_checked("losses", "simclr", temperature=[0.0], outputs=[0], weight=[-1.0])
    assert_settings_are_checked("losses", "byol", decay=[1.0, -0.1], hidden=[0], outputs=[0])
    assert_settings_are_checked("losses", "mtss", outputs=[0], weight=[math.inf])


def maps(count: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, 6, 4, 6, generator=generator, requires_grad=True)
    return Features(shared=(shared,))


def cosine(one: Tensor, other: Tensor) -> float:
    return float((one @ other / one.norm() / other.norm()).detach())


def test_simclr_is_the_equation() -> None:
    loss = SimCLR(TINY_TASKS, INFO, weight=2.0, temperature=0.5)
    features = maps(6)
    z = loss.projector(features.shared[0].mean((2, 3)))
    total = 0.0
    for i in range(6):
        other = i + 1 if i % 2 == 0 else i - 1
        scores = {k: math.exp(cosine(z[i], z[k]) / 0.5) for k in range(6) if k != i}
        total -= math.log(scores[other] / sum(scores.values()))
    term = loss(tiny_batch(6, views=VIEWS), features, {})["simclr"]
    assert float(term.detach()) == pytest.approx(2 * total / 6, rel=1e-5)


def test_one_image_has_nothing_to_be_told_from() -> None:
    loss = SimCLR(TINY_TASKS, INFO)
    assert loss(tiny_batch(2, views=(0, 1)), maps(2), {}) == {}


def test_mtss_is_the_mean_of_one_minus_cosine() -> None:
    loss = MTSS(TINY_TASKS, INFO)
    features = maps(6)
    p = loss.projector(features.shared[0].mean((2, 3)))
    expected = sum(1 - cosine(p[i], p[i + 1]) for i in (0, 2, 4)) / 3
    term = loss(tiny_batch(6, views=VIEWS), features, {})["mtss"]
    assert float(term.detach()) == pytest.approx(expected, rel=1e-5)


def taught() -> BYOL:
    loss = BYOL(TINY_TASKS, INFO, hidden=7, outputs=5)
    loss.teachers = {"ema": Teacher(tiny_learner(seed=3).model)}
    return loss


def test_byol_predicts_the_average_of_the_other_view() -> None:
    loss, features, batch = taught(), maps(6), tiny_batch(6, views=VIEWS)
    with torch.no_grad():
        for parameter in loss.average.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    term = loss(batch, features, {})["byol"]
    order = [0, 2, 4, 1, 3, 5]  # batch norm sees all of them together
    q = loss.predictor(loss.projector(features.shared[0].mean((2, 3))[order]))
    there = loss.teachers["ema"].features(batch.inputs, []).shared[0].mean((2, 3))
    z = loss.average(there[[1, 3, 5, 0, 2, 4]])
    expected = sum(2 - 2 * cosine(q[i], z[i]) for i in range(6)) / 6
    assert float(term.detach()) == pytest.approx(expected, rel=1e-4)
    term.backward()  # type: ignore[no-untyped-call]
    assert features.shared[0].grad is not None
    assert all(p.grad is None for p in loss.average.parameters())


@pytest.mark.parametrize(("progress", "moved"), [(0.0, 0.004), (0.5, 0.002), (1.0, 0.0)])
def test_byols_average_moves_less_and_less(progress: float, moved: float) -> None:
    loss = taught()
    with torch.no_grad():
        for parameter in loss.projector.parameters():
            parameter.add_(1)
    before = [p.clone() for p in loss.average.parameters()]
    loss.after_step(BalancerContext(tasks=tuple(NAMES), progress=progress))
    for old, new in zip(before, loss.average.parameters(), strict=True):
        torch.testing.assert_close(new, old + moved)


@pytest.mark.parametrize("kind", [SimCLR, BYOL, MTSS])
def test_a_network_per_task_is_refused(kind: type[Agreement]) -> None:
    loss = taught() if kind is BYOL else kind(TINY_TASKS, INFO)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="compared by what the tasks share"):
        loss(tiny_batch(4, views=(0, 0, 1, 1)), Features(), {})


def test_vectors_are_taken_as_they_are() -> None:
    vectors = torch.randn(3, 6)
    assert torch.equal(pooled(Features(shared=(vectors,))), vectors)


@pytest.mark.parametrize("name", ["simclr", "byol", "mtss"])
def test_images_without_a_label_teach_the_backbone(name: str) -> None:
    makers: dict[str, Any] = {"simclr": SimCLR, "byol": lambda *_: taught(), "mtss": MTSS}
    learner = tiny_learner(cross_task=[makers[name](TINY_TASKS, INFO)])
    losses = learner(tiny_batch(6, views=VIEWS, absent=NAMES), NAMES)
    assert not losses.raw
    losses.cross[name].backward()  # type: ignore[no-untyped-call]
    trunk = learner.model.shared_parameters()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trunk)


@pytest.mark.parametrize("name", ["simclr", "byol", "mtss"])
def test_beside_other_losses_and_partial_labels(name: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "data": {"train": 4, "val": 2, "size": [32, 32], "workers": 0, "labels": "one",
                 "augment": {"scales": [1.0, 1.5], "flip": True}},
        "model": {"backbone": {"name": "unet", "width": 0.03125}},
        "cross_task": [{"name": name}],
        "training": {"epochs": 1, "batch_size": 2, "threads": 1, "ema": 0.9},
    }  # fmt: skip
    mtlcore.run(values, out=str(tmp_path / "run"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert name in lines
