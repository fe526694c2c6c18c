"""Listed augmentations: what they draw from, what sees them, and what the standard ones do."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import mtlcore
from mtlcore.config import Layer, RunConfig, resolve
from mtlcore.data import Dataset, Sample, complete
from mtlcore.display import Display
from mtlcore.episodes import BatchPlan
from mtlcore.errors import ConfigError, Interrupted, UsageError
from mtlcore.loading import (
    Augmentation,
    BatchAugmentation,
    Loader,
    PlanReader,
    SampleAugmentation,
    Split,
)
from mtlcore.plugins import Plugins
from mtlcore.standard.augmentations import CutMix, Photometric, Rotate
from mtlcore.storage import LAST, load_checkpoint
from mtlcore.tasks import Task
from mtlcore.testing import AugmentationContract
from mtlcore.testing.base import same

SIZE = (12, 16)
TASKS = (
    Task(name="segmentation", kind="segmentation", channels=9),
    Task(name="depth", kind="depth", channels=1),
    Task(name="scene", kind="classification", channels=9),
    Task(name="objects", kind="multilabel", channels=2),
)
PLAN = BatchPlan("train", (5, 1, 6, 3), seed=11, augment=True)


class TestPhotometric(AugmentationContract):
    def make(self, tasks: Sequence[Task]) -> Photometric:
        return Photometric(tasks)


class TestCutMix(AugmentationContract):
    def make(self, tasks: Sequence[Task]) -> CutMix:
        return CutMix(tasks, probability=0.8)


class TestRotate(AugmentationContract):
    def make(self, tasks: Sequence[Task]) -> Rotate:
        return Rotate(tasks, scales=(0.75, 1.25))


class Numbered(Dataset):
    """Sample n is all n: its picture and each of its labels. Odd samples have no depth."""

    @classmethod
    def describe(cls, root: str | None, **settings: object) -> tuple[Task, ...]:
        return TASKS

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        everywhere = torch.ones(SIZE, dtype=torch.bool)
        targets = {
            "segmentation": torch.full(SIZE, index),
            "scene": torch.tensor(index),
            "objects": torch.full((2,), index / 8),
        }
        valid = {
            "segmentation": everywhere,
            "scene": torch.tensor(True),
            "objects": torch.ones(2, dtype=torch.bool),
        }
        if index % 2 == 0:
            targets["depth"], valid["depth"] = torch.full((1, *SIZE), 1.0 + index), everywhere
        image = torch.full((3, *SIZE), index / 8)
        return Sample(inputs=image, targets=targets, valid=valid, key=f"number/{index}")


def reader(
    *changes: SampleAugmentation | BatchAugmentation, views: int = 1, scales: bool = False
) -> PlanReader:
    first = Augmentation(scales=(1.0, 1.5), flip=True) if scales else None
    split = Split(Numbered(), TASKS, None, None)
    return PlanReader({"train": split}, TASKS, first, "stop", views, changes)


def batch_of(*changes: SampleAugmentation | BatchAugmentation, **how: Any) -> dict[str, Any]:
    batch = reader(*changes, **how)[PLAN].batch
    assert batch is not None
    return attrs.asdict(batch)


def photometric() -> Photometric:
    return Photometric(TASKS)


def cutmix() -> CutMix:
    return CutMix(TASKS)


# What they draw from, and what sees them


def test_each_has_a_stream_of_its_own() -> None:
    plain, coloured = batch_of(scales=True), batch_of(photometric(), scales=True)
    assert plain["meta"] == coloured["meta"], "scaling and flipping draw as without it"
    mixed = batch_of(photometric(), cutmix(), scales=True)
    moved = batch_of(CutMix(TASKS, probability=0), cutmix(), scales=True)
    assert mixed["meta"] == moved["meta"]
    assert not same(batch_of(photometric())["inputs"], batch_of(photometric(), photometric()))


def test_the_plans_seed_decides_whoever_loads() -> None:
    plans = [attrs.evolve(PLAN, seed=seed) for seed in (1, 2, 1)]
    loaded = []
    for workers in (0, 2):
        batches = Loader(reader(photometric(), cutmix()), workers, "stop").batches(plans)
        loaded.append([attrs.asdict(batch) for batch in batches if batch is not None])
    assert same(*loaded)
    assert same(loaded[0][0], loaded[0][2])
    assert not same(loaded[0][0], loaded[0][1])


def test_evaluation_never_augments() -> None:
    plan = attrs.evolve(PLAN, augment=False)
    plain, changed = (reader(*c)[plan].batch for c in ((), (photometric(), cutmix())))
    assert plain is not None and changed is not None
    assert same(attrs.asdict(plain), attrs.asdict(changed))


def test_they_come_in_the_order_of_the_list() -> None:
    class Darker(SampleAugmentation):
        def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
            return attrs.evolve(sample, inputs=sample.inputs / 2)

    class Lighter(BatchAugmentation):
        def __call__(self, samples: Sequence[Sample], generator: torch.Generator) -> list[Sample]:
            return [attrs.evolve(sample, inputs=sample.inputs + 0.1) for sample in samples]

    samples = batch_of(Darker(), Lighter())["inputs"]
    assert samples.max() == pytest.approx(6 / 16 + 0.1)
    samples = batch_of(Lighter(), Darker(), Lighter())["inputs"]
    assert samples.max() == pytest.approx((6 / 8 + 0.1) / 2 + 0.1)


def test_other_views_are_scaled_and_flipped_from_the_mixed_one() -> None:
    batch = reader(cutmix(), views=2, scales=True)[PLAN].batch
    assert batch is not None
    assert batch.view == (0,) * 4 + (1,) * 4
    for first, other in zip(range(4), range(4, 8), strict=True):
        assert batch.meta[first].get("cutmix") == batch.meta[other].get("cutmix")
        numbers = set(batch.targets["segmentation"][first].unique().tolist())
        assert set(batch.targets["segmentation"][other].unique().tolist()) <= numbers
        assert batch.targets["scene"][first] == batch.targets["scene"][other]
    alone = batch_of(cutmix(), scales=True)
    assert same(attrs.asdict(batch.first_views()), alone)


def test_counts_are_those_of_the_mixed_labels() -> None:
    batch = reader(cutmix())[PLAN].batch
    assert batch is not None
    for name, valid in batch.valid.items():
        assert batch.count[name] == int(valid.sum())
    assert 0 < batch.count["depth"] < 4 * SIZE[0] * SIZE[1]


class StopsAfter(Display):
    """Asks the run to stop after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.last = step

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        if step == self.last:
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, message: str) -> None: ...

    def _begin(self, title: str) -> None: ...

    def epoch(self, *_: Any) -> None: ...

    def stop(self) -> None: ...


def test_resuming_within_an_epoch_changes_nothing(tmp_path: Path) -> None:
    run = {
        "tasks": ["segmentation", "depth"],
        "data": {"train": 8, "val": 2, "size": [32, 32], "workers": 0,
                 "augment": {"scales": [1.0, 1.5], "flip": True},
                 "augmentations": [{"name": "photometric"}, {"name": "cutmix"}]},
        "model": {"backbone": {"width": 0.03125}},
        "training": {"epochs": 2, "batch_size": 2},
        "device": "cpu",
    }  # fmt: skip
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    mtlcore.run(run, out=whole)
    with pytest.raises(Interrupted, match="after step 5 of 8"):
        mtlcore.run(run, out=parts, display=StopsAfter(5))
    mtlcore.run(run, out=parts, resume=True)
    one, other = (load_checkpoint(Path(out, LAST))["learner"] for out in (whole, parts))
    assert same(one, other)
    plain = copy.deepcopy(run)
    del plain["data"]["augmentations"]
    mtlcore.run(plain, out=str(tmp_path / "plain"))
    assert not same(load_checkpoint(tmp_path / "plain" / LAST)["learner"], one)


# What is refused


class Vectors(Numbered):
    def __getitem__(self, index: int) -> Sample:
        return Sample(inputs=torch.rand(5), targets={}, valid={}, key=f"vector/{index}")


@pytest.mark.parametrize("change", [photometric(), cutmix()])
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_no_image_is_refused_also_where_errors_are_skipped(
    change: SampleAugmentation | BatchAugmentation, workers: int
) -> None:
    tasks = (TASKS[2],)
    split = Split(Vectors(), tasks, None, None)
    loader = Loader(PlanReader({"train": split}, tasks, None, "skip", 1, [change]), workers, "skip")
    message = r"data\.augmentations: \w+ changes images .*input of vector/5 is \(5,\); leave it out"
    with pytest.raises(UsageError, match=message):
        list(loader.batches([PLAN]))


def config(augmentations: Any) -> RunConfig:
    data = {"train": 4, "val": 2, "size": [32, 32], "workers": 0, "augmentations": augmentations}
    return resolve(Plugins(allow=()), (), [Layer("test", {"data": data})])


@pytest.mark.parametrize(
    ("augmentations", "message"),
    [
        ([{"name": "cutmx"}], r"data\.augmentations\[0\]\.name: .*did you mean 'cutmix'"),
        ([{"probability": 1.0}], r"data\.augmentations\[0\]\.name: name one of mtl list augment"),
        (
            [{"name": "cutmix"}, {"name": "photometric", "contrst": 1.0}],
            r"data\.augmentations\[1\]\.contrst: unknown setting; did you mean 'contrast'",
        ),
        ({"name": "cutmix"}, r"data\.augmentations: expected"),
        ("cutmix", r"data\.augmentations: expected"),
    ],
)
def test_mistakes_are_told_with_their_path(augmentations: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        config(augmentations)
    assert len(refused.value.problems) == 1


def test_a_value_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"augmentations\[0\]\.contrast: expected float .*got 2"):
        config([{"name": "photometric", "contrast": 2.0}])
    with pytest.raises(ValueError, match="probability -1 must lie"):
        CutMix(TASKS, probability=-1)


def test_a_configuration_is_completed() -> None:
    chosen = config([{"name": "cutmix"}, {"name": "cutmix", "probability": 0.5}])
    assert chosen.tree["data"]["augmentations"] == [
        {"name": "cutmix", "probability": 1.0},
        {"name": "cutmix", "probability": 0.5},
    ]
    assert [one.settings for one in chosen.augmentations] == [{}, {"probability": 0.5}]
    assert config([]).tree["data"]["augmentations"] == []


# The standard ones


def test_photometric_does_what_its_formulas_say() -> None:
    image = 0.4 + 0.2 * torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    sample = Sample(inputs=image, targets={}, valid={}, key="a")

    def changed(seed: int, **settings: float) -> torch.Tensor:
        nothing = dict.fromkeys(("brightness", "contrast", "saturation"), 0.0)
        change = Photometric(TASKS, **{**nothing, **settings})
        return change(sample, torch.Generator().manual_seed(seed)).inputs

    luma = (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    kept = 0
    for seed in range(20):
        assert torch.allclose(changed(seed), image)
        kept += bool(torch.allclose(changed(seed, brightness=0.2), image, atol=1e-6))
        shift = changed(seed, brightness=0.2) - image
        assert torch.allclose(shift, shift.mean(), atol=1e-6) and shift.abs().max() <= 0.2
        around = (changed(seed, contrast=0.5) - luma.mean()) / (image - luma.mean())
        assert 0.5 <= float(around.median()) <= 1.5
        assert torch.allclose(around.median() * (image - luma.mean()) + luma.mean(),
                              changed(seed, contrast=0.5), atol=1e-5)  # fmt: skip
        colours = changed(seed, saturation=0.5)
        grey = (colours * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
        assert torch.allclose(grey, luma, atol=1e-5), "saturation leaves how bright a pixel is"
    assert 3 < kept < 17, "each is done with a probability of one half"


def test_cutmix_pastes_pixels_and_labels_of_one_other_image() -> None:
    samples = [Numbered()[index] for index in range(4)]
    whole = [complete(sample, TASKS) for sample in samples]
    for seed in range(20):
        for number, mixed in enumerate(cutmix()(whole, torch.Generator().manual_seed(seed))):
            told = mixed.meta.get("cutmix")
            if told is None:
                assert mixed is whole[number]
                continue
            other = int(told["key"].rpartition("/")[2])
            top, left, rows, columns = told["box"]
            inside = torch.zeros(SIZE, dtype=torch.bool)
            inside[top : top + rows, left : left + columns] = True
            classes = torch.where(inside, other, number)
            assert torch.equal(mixed.targets["segmentation"], classes)
            assert torch.equal(mixed.inputs[0], classes / 8)
            assert torch.equal(mixed.valid["depth"], classes % 2 == 0)
            known = mixed.valid["depth"]
            assert torch.equal(mixed.targets["depth"][0][known], 1.0 + classes[known])
            assert (mixed.targets["depth"][0][~known] == 1.0).all(), "the safe value"
            assert int(mixed.targets["scene"]) in (number, other)
            assert mixed.targets["objects"].tolist() == [float(mixed.targets["scene"]) / 8] * 2


def test_the_label_of_an_image_is_drawn_by_the_boxs_share() -> None:
    pair = [complete(Numbered()[index], TASKS) for index in (2, 4)]
    shares, taken = [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(1500):
        for number, mixed in zip((2, 4), cutmix()(pair, generator), strict=True):
            if "cutmix" in mixed.meta:
                rows, columns = mixed.meta["cutmix"]["box"][2:]
                shares.append(rows * columns / (SIZE[0] * SIZE[1]))
                taken.append(float(mixed.targets["scene"] != number))
    shares, taken = torch.tensor(shares), torch.tensor(taken)
    assert abs(float(shares.mean()) - 0.5) < 0.04, "the share is uniform"
    for low in (0.0, 0.25, 0.5, 0.75):
        here = (shares >= low) & (shares < low + 0.25)
        assert abs(float((taken - shares)[here].mean())) < 0.06


@pytest.mark.parametrize(
    "settings",
    [
        {"degrees": -1.0},
        {"degrees": 181.0},
        {"scales": (0.0, 1.0)},
        {"scales": (2, 1)},
        {"scales": (0.75, 1.0, 1.25)},
    ],
)
def test_rotate_refuses_what_is_no_angle_or_scale(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Rotate(TASKS, **settings)


def test_rotate_draws_angles_and_scales_from_their_ranges() -> None:
    """Read off depth, which is divided by the scale, and off which corners are not valid."""
    sample = Sample(
        inputs=torch.ones(3, 20, 20),
        targets={"depth": torch.ones(1, 20, 20)},
        valid={"depth": torch.ones(20, 20, dtype=torch.bool)},
        key="x",
    )
    change, generator = Rotate(TASKS, degrees=20, scales=(0.75, 1.25)), torch.Generator()
    scales = [1 / float(change(sample, generator).targets["depth"].max()) for _ in range(200)]
    assert 0.75 <= min(scales) < 0.78
    assert 1.22 < max(scales) <= 1.25
    still = Rotate(TASKS, degrees=0.0)(sample, generator)
    assert torch.equal(still.valid["depth"], sample.valid["depth"])
