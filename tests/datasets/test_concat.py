"""Several datasets as one: their tasks together, and each sample with its own labels."""

import numpy as np
import pytest
import torch
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.concat import Concat
from mtlcore.datasets.folder import Folder
from mtlcore.datasets.rooms import Rooms
from mtlcore.errors import ConfigError, UsageError
from mtlcore.plugins import structure
from mtlcore.testing import DatasetContract

SIZE = (24, 32)
SPEC = """
size = [24, 32]
image = "{split}/{name}.png"
[tasks.parts]
kind = "segmentation"
file = "{split}/parts/{name}.png"
classes = ["table", "object"]
[tasks.depth]
kind = "depth"
file = "{split}/depth/{name}.png"
scale = 0.001
unit = "m"
"""
ROOMS = {"name": "rooms", "samples": 3, "size": SIZE}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "dataset.toml").write_text(SPEC)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, array in (
            ("", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)),
            ("parts", rng.integers(0, 2, SIZE, dtype=np.uint8)),
            ("depth", rng.integers(500, 2000, SIZE, dtype=np.uint16)),
        ):
            (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
            for name in ("00", "01"):
                Image.fromarray(array).save(tmp_path / split / kind / f"{name}.png")
    return {"name": "folder", "root": str(tmp_path)}


class TestContract(DatasetContract):
    samples = 5

    @pytest.fixture(autouse=True)
    def _files(self, folder):
        self.sources = (folder, ROOMS)

    def make(self, split):
        return Concat(None, split, sources=self.sources)

    def tasks(self):
        return Concat.describe(None, sources=self.sources)


def test_samples_follow_one_another_with_their_own_labels(folder):
    dataset = Concat(None, "train", sources=(folder, ROOMS))
    parts = [Folder(folder["root"], "train"), Rooms(None, "train", samples=3, size=SIZE)]
    assert len(dataset) == 5
    samples = [part[i] for part in parts for i in range(len(part))]
    for i, expected in enumerate(samples):
        sample = dataset[i]
        assert sample.key == expected.key
        assert torch.equal(sample.inputs, expected.inputs)
        assert sample.targets.keys() == expected.targets.keys()
        for task, target in expected.targets.items():
            assert torch.equal(sample.targets[task], target)
    assert dataset[-1].key == samples[-1].key
    with pytest.raises(IndexError):
        dataset[5]
    tasks = dataset.describe(None, sources=(folder, ROOMS))
    assert [task.name for task in tasks] == [
        "parts",
        "depth",
        "segmentation",
        "normals",
        "edges",
    ]
    batch = collate([dataset[i] for i in range(5)], tasks)
    pixels = SIZE[0] * SIZE[1]
    assert batch.count == {
        "parts": 2 * pixels,
        "depth": 5 * pixels,  # one task of both
        "segmentation": 3 * pixels,
        "normals": 3 * pixels,
        "edges": 3 * pixels,
    }


def test_tasks_may_get_other_names(folder):
    sources = ({**folder, "tasks": {"depth": "kinect"}}, {**ROOMS, "tasks": {"edges": "lines"}})
    names = [task.name for task in Concat.describe(None, sources=sources)]
    assert names == ["parts", "kinect", "segmentation", "depth", "normals", "lines"]
    dataset = Concat(None, "val", sources=sources)
    assert set(dataset[0].targets) == set(dataset[0].valid) == {"parts", "kinect"}
    assert set(dataset[4].targets) == {"segmentation", "depth", "normals", "lines"}


def test_tasks_of_one_name_must_be_one(folder):
    sources = ({**folder, "tasks": {"parts": "segmentation"}}, ROOMS)
    with pytest.raises(ConfigError) as caught:
        Concat.describe(None, sources=sources)
    for part in ("data.sources[1].tasks: 'rooms'", "data.sources[0] (folder)", "'segmentation'",
                 "channels, class_names", "another name"):  # fmt: skip
        assert part in str(caught.value)


def test_pictures_of_different_sizes_are_told_to_need_one(folder):
    sources = (folder, {**ROOMS, "size": (16, 16)})
    dataset = Concat(None, "train", sources=sources)
    message = r"rooms/train/0: input shape \(3, 16, 16\) .* set data\.size"
    with pytest.raises(DataError, match=message):
        collate(
            [dataset[0], dataset[2]], Concat.describe(None, sources=sources), dataset.collate_inputs
        )


def test_the_common_root_and_size(folder):
    plain = {"name": "folder"}
    assert len(Concat(folder["root"], "train", sources=(plain, plain))) == 4
    assert Concat.default_size(folder["root"], sources=(plain, ROOMS)) == SIZE
    assert Concat.default_size(None, sources=(ROOMS,)) is None


def test_everything_that_is_wrong_is_told_at_once():
    sources = (
        {"name": "rooom"},
        {"name": "rooms", "sed": 1, "size": [1]},
        {"name": "folder", "root": 3, "tasks": {"a": 1}},
        {},
    )
    with pytest.raises(ConfigError) as caught:
        Concat.describe(None, sources=sources)
    text = str(caught.value)
    for problem in (
        "data.sources[0].name: ",
        "did you mean 'rooms'?",
        "data.sources[1].sed: unknown setting; did you mean 'seed'?",
        "data.sources[1].samples: is required (int ",
        "data.sources[1].size: expected tuple[int ",
        "data.sources[2].root: expected a folder or URL, got 3",
        "data.sources[2].tasks: expected a table of new names, got {'a': 1}",
        "data.sources[3].name: name a dataset, one of mtl list datasets (got None)",
    ):
        assert problem in text
    assert text.count("sources[3]") == 1


@pytest.mark.parametrize(
    ("renamed", "problem"),
    [
        ({"dpeth": "x"}, r"sources\[0\]\.tasks\.dpeth: 'rooms' declares no such task; did you mea"),
        ({"depth": "edges"}, r"sources\[0\]\.tasks: gives two tasks of 'rooms' one name"),
        ({"depth": "Depth"}, r"sources\[0\]\.tasks: task name 'Depth': use lower-case"),
    ],
)
def test_names_that_do_not_fit_are_told(renamed, problem):
    with pytest.raises(ConfigError, match=problem):
        Concat.describe(None, sources=({**ROOMS, "tasks": renamed},))


def test_sources_raise_their_own_errors(folder, tmp_path):
    with pytest.raises(UsageError, match=r"folder reads files"):
        Concat(None, "train", sources=({"name": "folder"},))
    with pytest.raises(UsageError, match="rooms has no split 'tset'"):
        Concat(None, "tset", sources=(ROOMS,))
    with pytest.raises(ConfigError, match=r"data\.sources: name at least one"):
        Concat(None, "train", sources=())
    (tmp_path / "train" / "01.png").write_bytes(b"?")
    with pytest.raises(DataError, match=r"train/01.png: neither an image"):
        Concat(None, "train", sources=(ROOMS, folder))[4]


def test_sources_come_from_a_configuration():
    problems = []
    given = {"sources": [{"name": "rooms", "samples": 2, "size": [16, 16]}]}
    settings = structure(Concat, given, "data", problems)
    assert problems == []
    assert Concat(None, "train", **settings)[1].inputs.shape == (3, 16, 16)
