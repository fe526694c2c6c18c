"""Pretext tasks beside the labels of any dataset of images."""

import math
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

import mtlcore
from mtlcore.config import Layer, resolve
from mtlcore.data import DataError, Dataset, Sample, collate
from mtlcore.datasets.concat import Concat
from mtlcore.datasets.pretext import Pretext
from mtlcore.datasets.pretext_tasks import (
    PLACES,
    PRETEXT_TASKS,
    colour,
    inpainting,
    lab_of,
    position,
    rotation,
)
from mtlcore.datasets.random_numbers import Stream
from mtlcore.datasets.rooms import Rooms
from mtlcore.engine.building import make_loader, open_splits
from mtlcore.episodes import BatchPlan
from mtlcore.errors import ConfigError, UsageError
from mtlcore.loading import Split
from mtlcore.plugins import Plugins
from mtlcore.testing import DatasetContract

SIZE = (24, 32)
ROOMS = {"name": "rooms", "samples": 4, "size": SIZE}
TABLE = {
    "name": "tabular",
    "file": "x.csv",
    "targets": {"y": {"column": "y", "kind": "regression"}},
}
NAMES = tuple(PRETEXT_TASKS)


class TestContract(DatasetContract):
    samples = 20

    def make(self, split: str) -> Dataset:
        return Pretext(None, split, source=ROOMS, per_image=4)

    def tasks(self) -> tuple[mtlcore.Task, ...]:
        return Pretext.describe(None, source=ROOMS)


def made(task: Any, image: torch.Tensor, number: int = 40) -> list[Any]:
    before = image.clone()
    results = [task(image, Stream(number)) for number in range(number)]
    assert torch.equal(image, before), "the picture given is changed"
    for result in results:
        assert result.image.shape == image.shape
        assert float(result.image.min()) >= 0 and float(result.image.max()) <= 1
    return results


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(3))


# The four tasks


def test_a_turned_square_turns_back() -> None:
    image = picture(12, 12)
    results = made(rotation, image)
    assert {int(result.target) for result in results} == {0, 1, 2, 3}
    for result in results:
        back = result.image
        for _ in range(int(result.target)):  # clockwise: the first column becomes the first row
            back = back.flip(1).transpose(1, 2)
        assert torch.equal(back, image)


@pytest.mark.parametrize(("height", "width"), [(12, 17), (17, 12)])
def test_the_shape_of_what_is_seen_does_not_tell_the_angle(height: int, width: int) -> None:
    image = picture(height, width).clamp_min(0.01)
    seen = {tuple((result.image > 0).flatten().tolist()) for result in made(rotation, image)}
    assert len(seen) == 1
    assert sum(next(iter(seen))) == 3 * 12 * 12


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 70), (70, 40), (17, 17)])
def test_the_second_patch_lies_where_the_label_says(height: int, width: int) -> None:
    # Each pixel tells where it is: in the grey picture, 1 down or to the right is as much brighter.
    for axis in (0, 1):
        ramp = torch.arange(float((height, width)[axis])) / max(height, width)
        image = (ramp[:, None] if axis == 0 else ramp).expand(3, height, width).contiguous()
        side = min(height, width // 2)
        top, left = (height - side) // 2, (width // 2 - side) // 2
        results = made(position, image, 80)
        assert {int(result.target) for result in results} == set(range(8))
        patch = min(height, width) * 96 // 398
        step, jitter = patch + patch // 2, patch * 7 // 96
        moved = set()
        for result in results:
            first, second = (
                result.image[:, top : top + side, begin : begin + side]
                for begin in (left, width // 2 + left)
            )
            away = float(second.mean() - first.mean()) * max(height, width)
            name = PLACES[int(result.target)]
            words = (
                ("upper", "above", "lower", "below")
                if axis == 0
                else ("left", "left", "right", "right")
            )
            sign = 0
            if any(word in name for word in words[:2]):
                sign = -1
            elif any(word in name for word in words[2:]):
                sign = 1
            assert abs(away - sign * step) < jitter + 0.3, name
            moved.add(round(away - sign * step))
        assert moved == set(range(-jitter, jitter + 1))


def test_patches_have_no_colours_and_small_pictures_no_patches() -> None:
    for result in made(position, picture(40, 40), 8):
        assert torch.equal(result.image[0], result.image[2])
    with pytest.raises(ValueError, match="16 x 64 pixels, too small"):
        position(picture(16, 64), Stream(0))


# L, a and b of sRGB colours under D65, as Lindbloom's calculator gives them.
@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 1.0, 0.0), (87.73, -86.18, 83.18)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
    ],
)
def test_colours_of_lab(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    image = torch.tensor(rgb).view(3, 1, 1)
    assert lab_of(image).flatten().tolist() == pytest.approx(lab, abs=0.02)
    [result] = made(colour, image, 1)
    assert result.target.flatten().tolist() == pytest.approx(lab[1:], abs=0.02)
    assert result.image.flatten().tolist() == pytest.approx([lab[0] / 100] * 3, abs=2e-4)
    assert result.valid.all()


@pytest.mark.parametrize(("height", "width", "cells"), [(48, 48, 36), (24, 32, 48), (25, 30, 30)])
def test_six_tenths_of_the_cells_are_hidden_and_asked_for(
    height: int, width: int, cells: int
) -> None:
    image = picture(height, width)
    side = math.ceil(min(height, width) / 6)
    results = made(inpainting, image)
    for result in results:
        assert torch.equal(result.target, image)
        shown = ~result.valid
        assert torch.equal(result.image[:, shown], image[:, shown])
        assert (result.image[:, result.valid] == 0.5).all()
        inside = result.valid[::side, ::side]
        assert inside.numel() == cells
        assert int(inside.sum()) == math.ceil(0.6 * cells)
        again = inside.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]
        assert torch.equal(again, result.valid)
    assert len({tuple(result.valid.flatten().tolist()) for result in results}) == len(results)


# The dataset around another one


def test_each_image_comes_as_it_is_and_then_with_each_task() -> None:
    dataset, rooms = (
        Pretext(None, "val", source=ROOMS, per_image=4),
        Rooms(None, "val", samples=4, size=SIZE),
    )
    assert (len(dataset), dataset.repeats, dataset.self_labelled) == (20, 4, NAMES)
    for number in range(4):
        room, same = rooms[number], dataset[number]
        assert torch.equal(same.inputs, room.inputs)  # type: ignore[arg-type]
        assert (same.key, same.targets.keys(), same.as_is) == (room.key, room.targets.keys(), False)
        assert dataset.name_of(number) == str(number)
        posed = [dataset[4 * turn + number] for turn in range(1, 5)]
        assert sorted(name for sample in posed for name in sample.targets) == sorted(NAMES)
        assert all(sample.as_is and sample.key.startswith(f"{room.key}#") for sample in posed)
        for sample in posed:
            assert torch.equal(sample.inputs, room.inputs) == (  # type: ignore[arg-type]
                sample.targets.get("rotation") == 0 and SIZE[0] == SIZE[1]
            )
    assert dataset.name_of(4) is None
    with pytest.raises(IndexError):
        dataset[20]


def test_every_task_gets_images_however_few_are_used() -> None:
    # With data.train a dataset is asked for every n-th image.
    rooms = {"name": "rooms", "samples": 240, "size": (17, 17)}
    dataset = Pretext(None, "train", source=rooms)
    firsts = [next(iter(dataset[240 + number].targets)) for number in range(0, 240, 4)]
    assert all(firsts.count(name) >= 6 for name in NAMES)
    again = Pretext(None, "train", source=rooms, seed=1)
    assert [next(iter(again[240 + number].targets)) for number in range(0, 240, 4)] != firsts


def test_one_task_alone_and_more_samples_than_tasks() -> None:
    dataset = Pretext(None, "train", source=ROOMS, pretext=("rotation",), per_image=3)
    samples = [dataset[i] for i in range(4, 16)]
    assert {tuple(sample.targets) for sample in samples} == {("rotation",)}
    assert len({sample.key for sample in samples}) == 12
    assert len({int(sample.targets["rotation"]) for sample in samples}) > 1
    assert [task.name for task in Pretext.describe(None, source=ROOMS, pretext=("rotation",))] == [
        "segmentation", "depth", "normals", "edges", "rotation"
    ]  # fmt: skip


@pytest.fixture
def photographs(tmp_path: Any) -> dict[str, Any]:
    """Pictures that differ in size, with one of their own position."""
    (tmp_path / "dataset.toml").write_text("""
        image = "{split}/{name}.png"
        [tasks.position]
        kind = "segmentation"
        file = "{split}/parts/{name}.png"
        classes = ["table", "object"]
    """)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / split / "parts").mkdir(parents=True)
        for number, size in enumerate(((40, 50), (30, 60), (50, 40))):
            for name, array in (
                (f"{number}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8)),
                (f"parts/{number}.png", rng.integers(0, 2, size, dtype=np.uint8)),
            ):
                Image.fromarray(array).save(tmp_path / split / name)
    return {"name": "folder", "root": str(tmp_path)}


def test_names_that_the_source_has_too(photographs: dict[str, Any]) -> None:
    message = r"data\.source\.tasks: 'folder' has a task 'position' .*tasks = \{ position = "
    with pytest.raises(ConfigError, match=message):
        Pretext.describe(None, source=photographs)
    Pretext.describe(None, source=photographs, pretext=("rotation",))
    renamed = photographs | {"tasks": {"position": "parts"}}
    names = [task.name for task in Pretext.describe(None, source=renamed)]
    assert names == ["parts", *NAMES]
    sample = Pretext(None, "train", source=renamed)[0]
    assert [*sample.targets] == ["parts"]
    assert sample.sources["parts"].endswith("parts/0.png")


def test_pretext_tasks_are_made_at_the_size_of_the_run(photographs: dict[str, Any]) -> None:
    source = photographs | {"tasks": {"position": "parts"}}
    dataset = Pretext(None, "train", source=source, per_image=4, size=(36, 48))
    assert {sample.inputs.shape for sample in map(dataset.__getitem__, range(15))} == {(3, 36, 48)}  # type: ignore[union-attr]
    # A picture that was resized afterwards would have other greys at the borders of what is hidden.
    [hidden] = [
        s
        for i in range(3, 15)
        if "inpainting" in (s := dataset[i]).targets and s.key.startswith(dataset[1].key)
    ]
    assert (hidden.inputs[:, hidden.valid["inpainting"]] == 0.5).all()  # type: ignore[index, call-overload]
    small = Pretext(None, "train", source=source, pretext=("position",), size=(12, 12))
    with pytest.raises(DataError, match=r"0\.png#?.*: the image is 12 x 12 pixels.*data\.pretext"):
        small[3]
    own = Pretext(None, "train", source=source, pretext=("colour",))
    with pytest.raises(DataError, match=r"set data\.size"):
        collate([own[0], own[1]], Pretext.describe(None, source=source), own.collate_inputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": {"name": "romms"}}, r"data\.source\.name: .*rooms"),
        ({"source": {"name": 3}}, r"data\.source\.name: name a dataset"),
        ({"source": ROOMS | {"splits": ["train"]}}, r"data\.source\.splits: unknown"),
        ({"source": ROOMS | {"tasks": {"dpth": "d"}}}, r"data\.source\.tasks\.dpth"),
        ({"source": TABLE},
         r"data\.source\.name: .* made of images, and 'tabular' gives vector"),
        ({"source": ROOMS, "pretext": ()}, r"data\.pretext: name one task or more"),
        ({"source": ROOMS, "pretext": ("colour", "colour")}, r"data\.pretext: .*each once"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_path(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pretext.describe(None, **settings)


@pytest.mark.parametrize("outer", ["several", "pretext"])
def test_no_dataset_is_around_it(outer: str) -> None:
    inner = {"name": "pretext", "source": ROOMS, "pretext": ["rotation"]}
    with pytest.raises(ConfigError, match="'pretext' repeats its samples"):
        if outer == "several":
            Concat(None, "train", sources=(inner,))
        else:
            Pretext(None, "train", source=inner, pretext=("colour",))


def test_several_datasets_inside_of_it() -> None:
    both = {"name": "several", "sources": [ROOMS, ROOMS | {"seed": 1}]}
    dataset = Pretext(None, "train", source=both)
    assert len(dataset) == 16
    assert [*dataset[7].targets] == ["segmentation", "depth", "normals", "edges"]
    assert next(iter(dataset[15].targets)) in NAMES


def test_what_is_no_image_is_told_with_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(self: Rooms, index: int) -> Sample:
        return Sample(inputs=torch.zeros(5), targets={}, valid={}, key="rooms/7")

    dataset = Pretext(None, "train", source=ROOMS)
    monkeypatch.setattr(Rooms, "__getitem__", words)
    with pytest.raises(DataError, match=r"rooms/7: pretext tasks are made of images"):
        dataset[0]


# As a run uses it


def _splits(**data: Any) -> Any:
    plain = {"name": "rooms", "size": SIZE, "workers": 0} | data
    values = {"data": plain, "model": {"backbone": {"name": "unet", "width": 1 / 16}}}
    config = resolve(Plugins(allow=()), [], [Layer("test", values)])
    return config, open_splits(config)


def _pretext(**data: Any) -> Any:
    return _splits(name="pretext", source=ROOMS | {"samples": 40, "size": list(SIZE)}, **data)


@pytest.mark.parametrize(
    "labels", ["one", "random", "segmentation=0.5,depth=0.25,normals=0.5,edges=1"]
)
def test_labels_are_shared_out_as_without_pretext_tasks(labels: str) -> None:
    _, plain = _splits(train=20, val=2, labels=labels)
    _, with_pretext = _pretext(train=20, val=2, labels=labels)
    train = with_pretext["train"]
    assert train.regime == plain["train"].regime
    assert (len(train), train.examples, train.available) == (40, 20, 40)
    for index in range(20):
        kept = train.regime.tasks(index, "")
        assert train.sample(index).targets.keys() == kept
        assert len(train.sample(20 + index).targets) == 1
    # The same images come again: every second one of forty.
    assert [train.sample(i).key for i in range(20)] == [f"rooms/train/{2 * i}" for i in range(20)]
    again = [train.sample(20 + i).key.split("#")[0] for i in range(20)]
    assert again == [f"rooms/train/{2 * i}" for i in range(20)]
    assert len(with_pretext["val"]) == 4


def test_a_share_of_the_images_and_lists_of_their_names(tmp_path: Any) -> None:
    _, splits = _pretext(train_fraction=0.25, val=2, labels="one")
    assert (len(splits["train"]), splits["train"].examples) == (20, 10)
    assert splits["train"].names() == [str(4 * i) for i in range(10)]
    kept = splits["train"].regime.to_json()
    assert {*kept} == {"segmentation", "depth", "normals", "edges"}


def test_nobody_made_labels_that_could_be_hidden() -> None:
    data = {"name": "pretext", "source": ROOMS, "labels": "one", "workers": 0}
    values = {"tasks": ["rotation", "colour"], "data": data}
    config = resolve(Plugins(allow=()), [], [Layer("test", values)])
    with pytest.raises(UsageError, match=r"data\.labels: 'one' .* leave it at full"):
        open_splits(config)


def test_augmentations_leave_pretext_samples_alone() -> None:
    augment = {"scales": [1.2, 1.5], "flip": True}
    changes = [{"name": "photometric"}, {"name": "rotate"}, {"name": "cutmix"}]
    config, splits = _pretext(train=6, val=2, augment=augment, augmentations=changes)
    plans = [BatchPlan("train", (0, 6, 1, 7, 2, 8), seed=seed, augment=True) for seed in range(4)]
    for batch in make_loader(config, splits, views=2).batches(plans):
        assert batch is not None
        assert batch.view == (0,) * 6 + (1,) * 6
        for row, index in enumerate((0, 6, 1, 7, 2, 8) * 2):
            plain = splits["train"].sample(index)
            assert batch.keys[row] == plain.key
            same = bool(torch.equal(batch.inputs[row], plain.inputs))  # type: ignore[index]
            assert same == (index >= 6)
            if index < 6:
                assert "#" not in batch.meta[row].get("cutmix", {}).get("key", "")
                continue
            [(task, target)] = plain.targets.items()
            assert torch.equal(batch.targets[task][row], target)
            assert {name for name, labelled in batch.labelled.items() if labelled[row]} == {task}
            assert batch.meta[row]["crop"] == (0, 0, *SIZE)
            assert (batch.meta[row]["scale"], batch.meta[row]["flip"]) == (1.0, False)


def test_a_sample_that_stays_draws_like_any_other() -> None:
    augment = {"scales": [1.0, 1.5], "flip": True}
    config, splits = _pretext(train=6, val=2, augment=augment)
    batches = make_loader(config, splits).batches(
        [BatchPlan("train", (first, 1), seed=5, augment=True) for first in (0, 6)]
    )
    one, other = (batch.meta[1] for batch in batches if batch is not None)
    assert one == other


def test_it_goes_through_a_run(tmp_path: Any) -> None:
    run = {
        "data": {"name": "pretext", "source": {"name": "rooms", "samples": 8, "size": [32, 32]},
                 "train": 6, "val": 6, "per_image": 2, "labels": "one", "workers": 0,
                 "augment": {"scales": [1.0, 1.5], "flip": True}},
        "model": {"backbone": {"name": "unet", "width": 1 / 16}},
        "training": {"epochs": 1, "batch_size": 6},
        "device": "cpu",
    }  # fmt: skip
    mtlcore.run(run, out=str(tmp_path / "run"))
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for name in ("depth", *NAMES):
        assert any(f'"{name}"' in row for row in rows), name


def test_a_split_counts_examples_only() -> None:
    dataset = Pretext(None, "train", source=ROOMS, per_image=2)
    split = Split(dataset, Pretext.describe(None, source=ROOMS), None, 3)
    assert (len(split), split.examples, split.available) == (9, 3, 4)
    assert [split.sample(i).key.split("#")[0] for i in range(9)] == [
        f"rooms/train/{number}" for number in (0, 1, 2) * 3
    ]
    assert attrs.asdict(split.sample(3))["as_is"]
