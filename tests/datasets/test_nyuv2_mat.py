"""NYUv2's published MATLAB file, from files written as MATLAB writes them."""

import shutil
import sys

import fsspec
import numpy as np
import pytest
import torch

from mtlcore.data import DataError, collate
from mtlcore.datasets.nyud_mt import CLASS_NAMES as FORTY
from mtlcore.datasets.nyuv2 import CLASS_NAMES as THIRTEEN
from mtlcore.datasets.nyuv2_mat import NYUv2Mat
from mtlcore.errors import UsageError
from mtlcore.testing import DatasetContract

h5py = pytest.importorskip("h5py", reason="MATLAB files of version 7.3 are HDF5")
matlab = pytest.importorskip("scipy.io", reason="MATLAB files are written with scipy")

SIZE, COUNT = (6, 8), 5
NAMES = ("book", "bottle", "cabinet", "wall", "night stand", "television")
MAP = (23, 40, 3, 1, 32, 25)  # numbers of the 40 classes, from 1


def arrays(number):
    """Of a photograph, as one looks at it: (H, W, 3), (H, W), (H, W)."""
    rng = np.random.default_rng(number)
    return {
        "images": rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        "depths": rng.uniform(0.7, 10, SIZE).astype(np.float32),
        "labels": rng.integers(0, len(NAMES) + 1, SIZE, dtype=np.uint16),
    }


def write(root, **changes):
    root.mkdir(exist_ok=True)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        photographs = [arrays(number) for number in range(1, COUNT + 1)]
        for name in photographs[0]:
            # MATLAB has the photographs last, and HDF5 sees its dimensions the other way round.
            stored = np.stack([photograph[name] for photograph in photographs], axis=-1).T
            file[name] = changes.get(name, stored)
        cells = file.create_dataset("names", (1, len(NAMES)), h5py.ref_dtype)
        for i, name in enumerate(NAMES):
            text = np.array([[ord(letter)] for letter in name], dtype=np.uint16)
            cells[0, i] = file.create_dataset(f"#refs#/{i}", data=text).ref
    splits = {"trainNdxs": [[2], [4], [5]], "testNdxs": [[1], [3]]}
    matlab.savemat(root / "splits.mat", splits | changes.get("splits", {}))
    mapping = {"mapClass": np.array([MAP], dtype=np.float64)}
    matlab.savemat(root / "classMapping40.mat", mapping | changes.get("mapping", {}))
    return str(root)


class TestContract(DatasetContract):
    settings: dict = {}

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path)

    def make(self, split):
        return NYUv2Mat(self.root, split, **self.settings)

    def tasks(self):
        return NYUv2Mat.describe(self.root, **self.settings)


class TestContractOfAllClasses(TestContract):
    settings = {"classes": 894}


def test_arrays_are_turned_upright(tmp_path):
    dataset = NYUv2Mat(write(tmp_path), "train", classes=894)
    tasks = dataset.describe(str(tmp_path), classes=894)
    assert [(task.name, task.channels, task.unit) for task in tasks] == [
        ("segmentation", 6, ""),
        ("depth", 1, "m"),
    ]
    assert tasks[0].class_names == NAMES
    assert [dataset.name_of(i) for i in range(len(dataset))] == ["2", "4", "5"]
    sample, stored = dataset[1], arrays(4)
    assert sample.key == f"{tmp_path}/nyu_depth_v2_labeled.mat/4"
    np.testing.assert_allclose(sample.inputs.permute(1, 2, 0) * 255, stored["images"], atol=1e-4)
    np.testing.assert_array_equal(sample.targets["depth"][0], stored["depths"])
    np.testing.assert_array_equal(
        sample.targets["segmentation"], stored["labels"].astype(np.int64) - 1
    )
    np.testing.assert_array_equal(sample.valid["segmentation"], stored["labels"] > 0)
    assert all(collate([sample], tasks).count.values())


@pytest.mark.parametrize(
    ("classes", "names", "expected"),
    [
        (40, FORTY, ("books", "otherprop", "cabinet", "wall", "night stand", "television")),
        (13, THIRTEEN, ("books", "objects", "furniture", "wall", "furniture", "tv")),
    ],
)
def test_several_of_the_classes_are_one(tmp_path, classes, names, expected):
    dataset = NYUv2Mat(write(tmp_path), "val", classes=classes)
    assert dataset.describe(None, classes=classes)[0].class_names == names
    found = dataset[1].targets["segmentation"]
    numbers = arrays(3)["labels"]
    for number, name in enumerate(expected, 1):
        assert {names[c] for c in found[torch.from_numpy(numbers == number)]} <= {name}
    assert len(found[torch.from_numpy(numbers > 0)].unique()) == len(set(expected))
    np.testing.assert_array_equal(dataset[1].valid["segmentation"], numbers > 0)


def test_the_forty_become_the_thirteen_as_published(tmp_path):
    """By names: every class of the 13 that is one of the 40 as well keeps its name."""
    changes = {"mapping": {"mapClass": np.array([[1, 2, 4, 5, 7, 9]])}}
    write(tmp_path, **changes)
    dataset = NYUv2Mat(str(tmp_path), "train", classes=13)
    numbers, found = arrays(2)["labels"], dataset[0].targets["segmentation"].numpy()
    expected = ("wall", "floor", "bed", "chair", "table", "window")
    for number, name in enumerate(expected, 1):
        assert {THIRTEEN[c] for c in found[numbers == number]} <= {name}


def test_reads_through_fsspec(tmp_path):
    near = NYUv2Mat(write(tmp_path / "data"), "val")[0]
    archive = shutil.make_archive(str(tmp_path / "nyu"), "zip", tmp_path / "data")
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(tmp_path / "data"), "/nyuv2_mat_test", recursive=True)
    try:
        for root in (f"zip://::{archive}", "memory://nyuv2_mat_test"):
            far = NYUv2Mat(root, "val")[0]
            assert torch.equal(near.inputs, far.inputs)
            assert all(torch.equal(near.targets[name], far.targets[name]) for name in near.targets)
    finally:
        filesystem.rm("/nyuv2_mat_test", recursive=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"testNdxs": [[0], [3]]}}, r"splits.mat: 'testNdxs' .* from 1 to 5"),
        ({"splits": {"testNdxs": [[1], [6]]}}, r"splits.mat: 'testNdxs' .* from 1 to 5"),
        ({"splits": {"testNdxs": [[1], [1.5]]}}, r"splits.mat: 'testNdxs' .* from 1 to 5"),
        ({"mapping": {"mapClass": [[1, 2]]}}, r"'mapClass' does not give each of the 6 classes"),
        ({"mapping": {"mapClass": [[1, 2, 3, 4, 5, 41]]}}, r"a number from 1 to 40"),
        ({"images": np.zeros((5, 8, 6), np.uint8)}, r"'images' is uint8 of shape \(5, 8, 6\)"),
        ({"depths": np.zeros((5, 8, 6), np.uint8)}, r"'depths' is uint8"),
        ({"labels": np.zeros((4, 8, 6), np.uint16)}, r"have the shapes .* not those of one"),
    ],
)
def test_a_file_of_another_form_is_told(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        NYUv2Mat(write(tmp_path, **changes), "val")


def test_a_class_without_a_name_is_told(tmp_path):
    labels = np.full((COUNT, *SIZE[::-1]), 7, np.uint16)
    dataset = NYUv2Mat(write(tmp_path, labels=labels), "val")
    with pytest.raises(DataError, match=r"labeled.mat/1: holds the class 7, and only 6 are named"):
        dataset[0]


def test_what_is_missing_is_named(tmp_path):
    root = write(tmp_path)
    with pytest.raises(UsageError, match=r"no split 'test', only train, val"):
        NYUv2Mat(root, "test")
    with pytest.raises(UsageError, match=r"data\.root: nyuv2-mat"):
        NYUv2Mat.describe(None, classes=894)
    (tmp_path / "classMapping40.mat").unlink()
    assert len(NYUv2Mat(root, "train", classes=894)) == 3
    with pytest.raises(DataError, match=r"classMapping40.mat: no such file .*data.classes = 894"):
        NYUv2Mat(root, "train")
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(DataError, match=r"splits.mat: no such file"):
        NYUv2Mat(root, "train", classes=894)
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(DataError, match=r"labeled.mat: cannot be read as a MATLAB file of version"):
        NYUv2Mat(root, "train")
    (tmp_path / "nyu_depth_v2_labeled.mat").unlink()
    with pytest.raises(DataError, match=r"labeled.mat: no such file"):
        NYUv2Mat(root, "train")


def test_an_array_that_is_missing_is_named(tmp_path):
    root = write(tmp_path)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        del file["depths"]
    with pytest.raises(DataError, match=r"labeled.mat: has no variable 'depths' of its own"):
        NYUv2Mat(root, "train")
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "r+") as file:
        del file["names"]
        file["names"] = np.zeros(3)
    with pytest.raises(DataError, match=r"labeled.mat: 'names' is no cell array of texts"):
        NYUv2Mat.describe(root, classes=894)


@pytest.mark.parametrize("library", ["h5py", "scipy.io"])
def test_without_a_library_it_says_how_to_get_it(tmp_path, monkeypatch, library):
    root = write(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    package = library.partition(".")[0]
    with pytest.raises(UsageError, match=rf"nyuv2-mat .* {package}, .*pip install 'mtlcore\[matl"):
        NYUv2Mat(root, "train")
