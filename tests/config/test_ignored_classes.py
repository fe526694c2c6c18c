"""Classes that count nowhere: named in the configuration, gone from labels, losses and metrics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.config import resolve, set_layer
from mtlcore.data import Sample, collate, complete
from mtlcore.errors import ConfigError
from mtlcore.plugins import Plugins
from mtlcore.standard.metrics import SegmentationMetric
from mtlcore.standard.metrics_vectors import ClassificationMetric
from mtlcore.tasks import Task

TINY: dict[str, Any] = {
    "tasks": ["segmentation", "depth"],
    "device": "cpu",
    "data": {"name": "rooms", "train": 4, "val": 2, "size": [32, 32], "workers": 0},
    "training": {"batch_size": 2, "epochs": 1},
}


def resolved(*assignments: str, plugins: Plugins | None = None):
    return resolve(plugins or Plugins(allow=()), (), [set_layer(assignments)])


def ignoring(*classes: int, kind: str = "segmentation") -> Task:
    return Task(name="classes", kind=kind, channels=4, ignored=classes)


def test_names_and_numbers_are_the_same_classes() -> None:
    config = resolved("data.ignore_classes={segmentation=['floor', 3]}")
    (task,) = (task for task in config.tasks if task.name == "segmentation")
    assert [task.class_names[number] for number in task.ignored] == ["floor", "table"]
    assert task.counted == tuple(n for n in range(task.channels) if n not in task.ignored)
    assert all(not other.ignored for other in config.tasks if other is not task)


def test_a_task_that_the_run_does_not_learn_may_be_named() -> None:
    """So that a method's preset stays right with fewer tasks."""
    config = resolved("data.ignore_classes={segmentation=['floor']}", "tasks=['depth']")
    assert [task.name for task in config.tasks] == ["depth"]


def test_other_data_has_other_classes() -> None:
    values = ("data.ignore_classes={segmentation=['floor']}", "data.name=nyuv2", "data.root=x")
    layers = [set_layer(values[:1]), set_layer(values[1:])]
    config = resolve(Plugins(allow=()), (), layers)
    assert not any(task.ignored for task in config.tasks)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{segmentation=['floors']}", "no class 'floors'; did you mean 'floor'"),
        ("{segmentation=[13]}", "has no class 13"),
        ("{segmentation=[-1]}", "has no class -1"),
        ("{depth=[0]}", "'depth' has no classes"),
        ("{segmentations=[0]}", "no such task; did you mean 'segmentation'"),
        (f"{{segmentation={list(range(13))}}}", "all of its classes"),
        ("{segmentation='floor'}", "expected tuple"),
    ],
)
def test_what_is_no_class_is_told(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.ignore_classes") as caught:
        resolved(f"data.ignore_classes={value}")
    assert message in str(caught.value)


def test_labels_of_ignored_classes_are_missing_labels() -> None:
    task = ignoring(0, 2)
    target = torch.tensor([[0, 1, 2], [3, 2, 1]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    sample = Sample(
        inputs=torch.zeros(3, 2, 3), targets={"classes": target}, valid={"classes": valid}, key="x"
    )
    batch = collate([sample], [task])
    expected = [[[False, True, False], [True, False, False]]]
    assert batch.valid["classes"].tolist() == expected
    assert batch.targets["classes"].tolist() == [[[0, 1, 0], [3, 0, 0]]]
    assert batch.count == {"classes": 2}
    assert complete(sample, [task]).valid["classes"].tolist() == expected[0]
    only = Sample(
        inputs=torch.zeros(3, 1, 1),
        targets={"classes": torch.tensor([[2]])},
        valid={"classes": torch.ones(1, 1, dtype=torch.bool)},
        key="y",
    )
    assert collate([only], [task]).labelled == {"classes": (False,)}
    assert collate([only], [task]).present(["classes"]) == ()


def test_means_over_classes_leave_them_out() -> None:
    """Also where the network predicts one; that is an error of the class that is there."""
    target = torch.tensor([[[1, 1, 3, 3]]])
    predicted = torch.tensor([[[1, 0, 3, 3]]])
    logits = torch.nn.functional.one_hot(predicted, 4).movedim(-1, 1).float()
    valid = torch.ones(1, 1, 4, dtype=torch.bool)
    found = {}
    for task in (ignoring(0), ignoring()):
        metric = SegmentationMetric(task)
        metric.update(logits, target, valid)
        found[task.ignored] = metric.compute()
    assert found[(0,)] == {"miou": pytest.approx((0.5 + 1) / 2), "pixel_accuracy": 0.75}
    assert found[()] == {"miou": pytest.approx((0 + 0.5 + 1) / 3), "pixel_accuracy": 0.75}
    metric = ClassificationMetric(ignoring(0, kind="classification"))
    metric.update(logits[0, :, 0].T, target.flatten(), valid.flatten())
    assert metric.compute()["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_a_run_without_the_background(tmp_path: Path) -> None:
    """The walls of a room are its background: without them other pixels are judged."""
    found = {}
    for name, classes in (("all", []), ("some", ["wall", "floor", "ceiling"])):
        values = {**TINY, "data": {**TINY["data"], "ignore_classes": {"segmentation": classes}}}
        found[name] = mtlcore.run(values, out=str(tmp_path / name))["final"]["val"]
    every, some = (found[name]["segmentation"] for name in ("all", "some"))
    assert every["loss"] != some["loss"]
    assert every["miou"] != some["miou"]
    assert math.isfinite(some["loss"])
    again = mtlcore.run(str(tmp_path / "some" / "config.toml"), out=str(tmp_path / "again"))
    assert again["final"]["val"]["segmentation"] == some
