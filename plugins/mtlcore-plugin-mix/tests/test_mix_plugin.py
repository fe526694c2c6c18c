"""What is chosen, what comes along, and what mtlcore asks of every augmentation and method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore.data import Sample
from mtlcore.errors import UsageError
from mtlcore.tasks import Task
from mtlcore.testing import (
    AugmentationContract,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
)
from mtlcore_mix.mixing import ClassMix, DepthMix, MaskMix

CLASSES = Task(name="classes", kind="segmentation", channels=4)
DEPTH = Task(name="depth", kind="depth", channels=1)
NEARNESS = Task(name="nearness", kind="inverse-depth", channels=1)
SCENE = Task(name="scene", kind="classification", channels=9)
TASKS = (CLASSES, DEPTH, NEARNESS, SCENE)


class TestClassMix(AugmentationContract):
    def make(self, tasks: Sequence[Task]) -> ClassMix:
        return ClassMix(tasks, probability=0.8)


class TestDepthMix(AugmentationContract):
    def make(self, tasks: Sequence[Task]) -> DepthMix:
        return DepthMix(tasks, probability=0.8)


class TestClassMixMethod(MethodContract):
    method = "classmix"


class TestDepthMixMethod(MethodContract):
    method = "depthmix"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_mix.plugin")
    assert_plugin_is_whole("mtlcore_mix.plugin")


def _sample(number: int, valid: bool = True, classes: Sequence[int] = (0, 1, 2, 3)) -> Sample:
    """Return quarters of four classes, and depths from left to right or from right to left."""
    rows = torch.tensor(classes).reshape(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1)
    depth = torch.arange(1.0, 9.0).expand(1, 8, 8)
    depth = depth.flip(-1) if number % 2 else depth
    everywhere = torch.full((8, 8), valid)
    return Sample(
        inputs=torch.full((3, 8, 8), number / 8),
        targets={
            "classes": rows.clone(),
            "depth": depth.clone(),
            "nearness": 1 / depth,
            "scene": torch.tensor(number),
        },
        valid={
            "classes": everywhere.clone(),
            "depth": everywhere.clone(),
            "nearness": everywhere.clone(),
            "scene": torch.tensor(True),
        },
        key=str(number),
    )


def _mixed(change: MaskMix, samples: Sequence[Sample]) -> list[tuple[Sample, Sample, Tensor]]:
    """Return each sample that was mixed, the one that was pasted into it, and where."""
    found = []
    for seed in range(20):
        for sample in change(samples, torch.Generator().manual_seed(seed)):
            told: Any = sample.meta.get("classmix") or sample.meta.get("depthmix")
            if told is not None:
                (other,) = (each for each in samples if each.key == told["key"])
                pasted = sample.inputs[0] == other.inputs[0]
                assert told["share"] == pytest.approx(float(pasted.float().mean()))
                found.append((sample, other, pasted))
    return found


def test_half_of_the_classes_are_pasted_whole() -> None:
    drawn = set()
    for sample, other, pasted in _mixed(ClassMix(TASKS), [_sample(0), _sample(1)]):
        classes = other.targets["classes"]
        chosen = frozenset(classes[pasted].tolist())
        assert len(chosen) == 2
        assert torch.equal(pasted, torch.isin(classes, torch.tensor(sorted(chosen))))
        assert torch.equal(sample.targets["depth"][0][pasted], other.targets["depth"][0][pasted])
        drawn.add(chosen)
    assert len(drawn) == 6, "each two of four classes"


@pytest.mark.parametrize(("classes", "count"), [((0, 0, 0, 0), 0), ((0, 1, 2, 2), 1)])
def test_half_is_rounded_down(classes: tuple[int, ...], count: int) -> None:
    mixed = _mixed(ClassMix(TASKS), [_sample(n, classes=classes) for n in range(2)])
    assert bool(mixed) is bool(count)
    for _, other, pasted in mixed:
        assert len(other.targets["classes"][pasted].unique()) == count


@pytest.mark.parametrize("by", ["depth", "nearness"])
def test_what_is_nearer_is_seen(by: str) -> None:
    mixed = _mixed(DepthMix(TASKS, chosen_by=by), [_sample(0), _sample(1)])
    assert mixed
    for sample, other, pasted in mixed:
        nearest = torch.arange(1.0, 9.0).minimum(torch.arange(1.0, 9.0).flip(0))
        torch.testing.assert_close(sample.targets["depth"][0], nearest.expand(8, 8))
        torch.testing.assert_close(sample.targets["nearness"][0], 1 / nearest.expand(8, 8))
        assert torch.equal(pasted, other.targets["depth"][0] == nearest)


def test_at_one_distance_the_margin_decides() -> None:
    samples = [_sample(0), _sample(2)]  # the same depths
    assert not _mixed(DepthMix(TASKS), samples)
    assert all(pasted.all() for _, _, pasted in _mixed(DepthMix(TASKS, margin=0.5), samples))


@pytest.mark.parametrize("kind", [ClassMix, DepthMix])
def test_what_has_no_label_is_not_pasted(kind: type[MaskMix]) -> None:
    change: MaskMix = kind(TASKS)  # type: ignore[call-arg]
    samples = [_sample(0), _sample(1, valid=False)]
    into = {sample.key for sample, _, _ in _mixed(change, samples)}
    assert into == ({"1"} if kind is ClassMix else set())


def test_labels_of_images_follow_the_share() -> None:
    change, samples = ClassMix(TASKS), [_sample(0), _sample(1)]
    scenes = [
        int(sample.targets["scene"]) != int(sample.key)
        for seed in range(400)
        for sample in change(samples, torch.Generator().manual_seed(seed))
        if "classmix" in sample.meta
    ]
    # Two of four quarters: half.
    assert abs(sum(scenes) - len(scenes) / 2) < 4 * math.sqrt(len(scenes) / 4)


def test_without_a_task_to_choose_by_it_is_refused() -> None:
    with pytest.raises(UsageError, match="classmix mixes images by a task of the kind segm"):
        ClassMix([DEPTH])
    with pytest.raises(UsageError, match=r"depthmix mixes .* depth or inverse-depth"):
        DepthMix([CLASSES])
    with pytest.raises(UsageError, match=r"depthmix cannot mix by 'dept'.*did you mean 'depth'"):
        DepthMix(TASKS, chosen_by="dept")


def test_beside_other_augmentations(tmp_path: Any) -> None:
    listed = [{"name": "photometric"}, {"name": "classmix", "probability": 0.5}]
    data = {"train": 4, "val": 2, "size": [32, 32], "workers": 0, "augmentations": listed}
    model = {"backbone": {"name": "unet", "width": 1 / 32}}
    training = {"epochs": 1, "batch_size": 4}
    mtlcore.run({"data": data, "model": model, "training": training}, out=str(tmp_path / "run"))
