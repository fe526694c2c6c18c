"""The losses against their equations, their contracts, and runs that do not forget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mtlcore
from mtlcore.balancing import BalancerContext
from mtlcore.config import set_layer
from mtlcore.data import Batch
from mtlcore.engine.building import open_splits
from mtlcore.features import FeatureInfo, Features
from mtlcore.plugins import Plugins
from mtlcore.runs import adapted_config, load_run
from mtlcore.storage import read_weights
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
from mtlcore_distill.answers import distilled
from mtlcore_distill.average import MeanTeacher
from mtlcore_distill.forgetting import LwF

NAMES = [task.name for task in TINY_TASKS]
INFO = FeatureInfo((6, 5), (2, 2))


class TestLwF(CrossTaskLossContract):
    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> LwF:
        return LwF(tasks, features)

    def batch(self, absent: Sequence[str] = ()) -> Batch:
        """Labels teach where there are some: the loss does not apply to a batch with all."""
        return super().batch([*absent, "depth"])


class TestMeanTeacher(CrossTaskLossContract):
    views = (0, 0, 1, 1)

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> MeanTeacher:
        return MeanTeacher(tasks, features)


class TestMethod(MethodContract):
    method = "mean-teacher"
    overrides = ("data.train=4", "data.val=2", "data.size=32x32", "data.workers=0", "device=cpu",
                 "training.batch_size=2")  # fmt: skip


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_distill.plugin")
    assert_plugin_is_whole("mtlcore_distill.plugin")


def test_settings_are_checked() -> None:
    assert_settings_are_checked("losses", "lwf", weight=[0.0, math.inf], temperature=[0.0])
    assert_settings_are_checked("losses", "mean-teacher", weight=[-1.0], ramp=[-0.1, 1.1])


def taught(loss: Any, tasks: Sequence[Task] = TINY_TASKS) -> Any:
    (name,) = loss.needs_teachers
    loss.teachers = {name: Teacher(tiny_learner(seed=7, tasks=tasks).model)}
    return loss


def predictions(batch: Batch, seed: int = 1) -> dict[str, Tensor]:
    learner = tiny_learner(seed=seed)
    return {name: raw.detach() for name, raw in learner.predict(batch.inputs, NAMES).items()}


# What is compared


def test_of_classes_it_is_the_cross_entropy_of_softened_probabilities() -> None:
    task = TINY_TASKS[0]
    found, there = torch.randn(2, 2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for n in range(2):
        for y in range(3):
            for x in range(5):
                old = [math.exp(float(there[n, c, y, x])) ** 0.5 for c in range(4)]
                new = [math.exp(float(found[n, c, y, x])) ** 0.5 for c in range(4)]
                for o, q in zip(old, new, strict=True):
                    total -= o / sum(old) * math.log(q / sum(new))
    assert float(distilled(task, found, there, 2.0)) == pytest.approx(total / 30, rel=1e-5)


@pytest.mark.parametrize(
    "task",
    [
        Task(name="classes", kind="segmentation", channels=3),
        Task(name="scene", kind="classification", channels=3),
        Task(name="edges", kind="edges", channels=3),
        Task(name="tags", kind="multilabel", channels=3),
        Task(name="normals", kind="normals", channels=3),
        Task(name="depth", kind="depth", channels=3),
    ],
    ids=lambda task: task.kind,
)
def test_it_is_least_at_what_is_taught(task: Task) -> None:
    shape = (4, 3, 2, 2) if task.layout == "map" else (4, 3)
    there = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = there.clone().requires_grad_()
    least = distilled(task, found, there, 2.0)
    least.backward()  # type: ignore[no-untyped-call]
    if task.kind != "depth":  # whose corner is there
        torch.testing.assert_close(found.grad, torch.zeros(shape), atol=1e-6, rtol=0)
    other = there + 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert float(distilled(task, other, there, 2.0)) > float(least.detach()) + 1e-3


# Learning without forgetting


def test_only_samples_without_a_label_of_an_old_task_are_taught() -> None:
    old = TINY_TASKS[:2]  # normals have joined
    loss = taught(LwF(TINY_TASKS, INFO, weight=0.5), old)
    batch = tiny_batch(4, absent=["segmentation", "normals"])
    batch.labelled["segmentation"] = (True, False, True, False)
    assert loss.needs(batch, NAMES) == ["segmentation"]
    raw = predictions(batch)
    terms = loss(batch, Features(), raw)
    assert [*terms] == ["lwf/segmentation"]
    there = loss.teachers["initial"].predict(batch.inputs, ["segmentation"])["segmentation"]
    rows = [1, 3]
    expected = distilled(old[0], raw["segmentation"][rows], there[rows], 2.0)
    torch.testing.assert_close(terms["lwf/segmentation"], 0.5 * expected)
    everything = tiny_batch(4)
    assert loss.needs(everything, NAMES) == []
    assert loss(everything, Features(), predictions(everything)) == {}


def small(tasks: Sequence[str]) -> dict[str, Any]:
    return {
        "tasks": [*tasks],
        "data": {"train": 8, "val": 4, "size": [32, 32], "workers": 0},
        "model": {"backbone": {"name": "unet", "width": 0.03125}},
        "optimizer": {"name": "adam", "lr": 0.01},
        "training": {"epochs": 6, "batch_size": 4, "threads": 1},
        "device": "cpu",
    }


def test_adapted_with_it_a_run_stays_nearer_to_what_it_was(tmp_path: Path) -> None:
    """The training split has labels of the new task alone."""
    plugins, start = Plugins.from_environment(), str(tmp_path / "start")
    mtlcore.run(small(["segmentation", "depth"]), out=start)
    trained = load_run(plugins, start, "best")
    images = open_splits(trained.config)["val"]
    inputs = torch.stack([images.sample(i).inputs for i in range(4)])
    old = trained.learner.predict(inputs, ["segmentation", "depth"])
    hidden = ["data.labels='segmentation=0,depth=0,edges=1'", "training.epochs=12"]
    moved = {}
    for name, more in (("tuned", []), ("kept", ["cross_task=[{name='lwf'}]"])):
        config = adapted_config(plugins, start, ["edges"], changes=set_layer([*hidden, *more]))
        assert [*config.teachers] == (["initial"] if more else [])
        mtlcore.run(config, out=str(tmp_path / name))
        new = load_run(plugins, str(tmp_path / name), "last").learner.predict(inputs, [*old])
        moved[name] = [float((new[t] - old[t]).detach().abs().mean()) for t in old]
    assert all(
        kept < 0.8 * tuned for kept, tuned in zip(moved["kept"], moved["tuned"], strict=True)
    )


def test_warming_up_only_the_new_head_learns(tmp_path: Path) -> None:
    """The paper's first phase, by settings that any run has."""
    plugins, start = Plugins.from_environment(), str(tmp_path / "start")
    mtlcore.run(small(["depth"]), out=start)
    changes = set_layer(["cross_task=[{name='lwf'}]", "data.labels='depth=0,edges=1'",
                         "model.freeze=['backbone']",
                         "training.freeze_until=0.9", "training.epochs=1"])  # fmt: skip
    config = adapted_config(plugins, start, ["edges"], changes=changes)
    mtlcore.run(config, out=str(tmp_path / "warm"))
    (_, old), (_, new) = (read_weights(place, "best") for place in (start, str(tmp_path / "warm")))
    for name in old:
        if name.startswith("model."):
            assert torch.equal(old[name], new[name]), name


# Mean teacher


def progressed(loss: MeanTeacher, progress: float) -> MeanTeacher:
    loss.after_step(BalancerContext(tasks=tuple(NAMES), progress=progress))
    return loss


def test_its_weight_rises_and_stays() -> None:
    batch = tiny_batch(4, views=(0, 0, 1, 1))
    raw = predictions(batch)

    def at(progress: float, **settings: float) -> float:
        loss = taught(MeanTeacher(TINY_TASKS, INFO, **settings))
        return float(progressed(loss, progress)(batch, Features(), raw)["mean-teacher/depth"])

    full = at(0.9)
    assert at(0.25) == pytest.approx(full)
    assert at(0.125) == pytest.approx(full * math.exp(-5 / 4), rel=1e-5)
    assert at(0.0) == pytest.approx(full * math.exp(-5), rel=1e-5)
    assert at(0.0, ramp=0.0, weight=3.0) == pytest.approx(3 * full, rel=1e-5)


def test_the_average_sees_the_first_view_and_the_model_the_other() -> None:
    batch = tiny_batch(4, views=(0, 0, 1, 1))  # other views are said to be mirror images
    raw = predictions(batch)
    loss = progressed(taught(MeanTeacher(TINY_TASKS, INFO)), 1.0)
    terms = loss(batch, Features(), raw)
    there = loss.teachers["ema"].predict(batch.inputs[:2], NAMES)
    probabilities = raw["segmentation"][2:].softmax(1) - there["segmentation"].softmax(1).flip(-1)
    torch.testing.assert_close(terms["mean-teacher/segmentation"], probabilities.square().mean())
    depths = raw["depth"][2:] - there["depth"].flip(-1)
    torch.testing.assert_close(terms["mean-teacher/depth"], depths.square().mean())
    mirrored = (
        F.normalize(there["normals"], dim=1).flip(-1) * torch.tensor([-1.0, 1, 1])[:, None, None]
    )
    normals = F.normalize(raw["normals"][2:], dim=1) - mirrored
    torch.testing.assert_close(terms["mean-teacher/normals"], normals.square().mean())


def test_unlabelled_images_teach(tmp_path: Path) -> None:
    values = small(["segmentation", "depth"])
    values["data"] |= {"labels": "one", "augment": {"scales": [1.0, 1.5], "flip": True}}
    values["training"] |= {"epochs": 1, "ema": 0.9, "evaluate_ema": True}
    values["cross_task"] = [{"name": "mean-teacher", "ramp": 0.5}]
    mtlcore.run(values, out=str(tmp_path / "run"))
    _, weights = read_weights(str(tmp_path / "run"), "last")
    assert float(weights["cross_task.0.done"]) == pytest.approx(0.5)
