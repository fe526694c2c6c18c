"""The NYUD_MT layout, from files written in its exact format."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.nyud_mt import CLASS_NAMES, NYUDMT
from mtlcore.errors import UsageError
from mtlcore.testing import DatasetContract

SIZE = (12, 16)


def picture(array, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def raw(number):
    rng = np.random.default_rng(number)
    normals = rng.normal(size=(*SIZE, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    # A direction whose components add up to nothing is one all the same.
    normals[0, 0] = np.array([1, -1, 0]) / np.sqrt(2)
    normals[-1] = 0
    depth = rng.uniform(0.7, 10, SIZE).astype(np.float32)
    depth[:2, :3] = 0
    return {
        "segmentation": rng.choice(np.array([0, 1, 17, 40], np.uint8), SIZE),
        "depth": depth,
        "normals": normals,
        "edge": (rng.random(SIZE) > 0.9).astype(np.float32),
    }


@pytest.fixture
def root(tmp_path):
    lists = {"train": ("0003", "0004"), "val": ("0001",), "test": ("0002",)}
    for i, (split, names) in enumerate(lists.items()):
        files = {f"gt_sets/{split}.txt": "\n".join(names).encode() + b"\n"}
        for k, name in enumerate(names):
            arrays = raw(10 * i + k)
            files[f"images/{name}.jpg"] = picture(np.full((*SIZE, 3), 90, np.uint8), "JPEG")
            files[f"segmentation/{name}.png"] = picture(arrays.pop("segmentation"))
            files |= {f"{folder}/{name}.npy": npy(array) for folder, array in arrays.items()}
        for path, data in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)
    return tmp_path


class TestContract(DatasetContract):
    splits = ("train", "val", "test")
    classes = 40

    @pytest.fixture(autouse=True)
    def _files(self, root):
        self.root = str(root)

    def make(self, split):
        return NYUDMT(self.root, split, classes=self.classes)

    def tasks(self):
        return NYUDMT.describe(self.root, classes=self.classes)


class TestContractWithBackground(TestContract):
    classes = 41


@pytest.mark.parametrize("classes", [40, 41])
def test_the_tasks_need_no_files(classes):
    tasks = NYUDMT.describe(None, classes=classes)
    assert [(task.name, task.kind, task.channels) for task in tasks] == [
        ("segmentation", "segmentation", classes),
        ("depth", "depth", 1),
        ("normals", "normals", 3),
        ("edges", "edges", 1),
    ]
    assert tasks[0].class_names[-40:] == CLASS_NAMES
    assert tasks[1].unit == "m"


@pytest.mark.parametrize("prefix", ["", "memory://"])
def test_reads_the_published_layout(root, prefix):
    place = str(root)
    if prefix:
        import fsspec

        place = "memory://nyud"
        fsspec.filesystem("memory").put(f"{root}/", "/nyud/", recursive=True)
    dataset = NYUDMT(place, "train")
    assert (len(dataset), len(NYUDMT(place, "val"))) == (2, 1)
    for i, name in enumerate(("0003", "0004")):
        sample, expected = pickle.loads(pickle.dumps(dataset))[i], raw(i)
        assert sample.key == f"{place}/images/{name}.jpg"
        assert torch.allclose(sample.inputs, torch.tensor(90 / 255), atol=0.01)
        np.testing.assert_array_equal(sample.targets["depth"][0], expected["depth"])
        np.testing.assert_array_equal(sample.valid["depth"], expected["depth"] > 0)
        there = np.abs(expected["normals"]).max(-1) > 0
        np.testing.assert_array_equal(sample.valid["normals"], there)
        np.testing.assert_allclose(
            sample.targets["normals"].permute(1, 2, 0)[there], expected["normals"][there], atol=1e-6
        )
        np.testing.assert_array_equal(sample.targets["edges"][0], expected["edge"])
        assert bool(sample.valid["edges"].all())
        assert all(collate([sample], dataset.describe(None)).count.values())


def test_unlabelled_is_invalid_or_the_background(root):
    stored = raw(0)["segmentation"].astype(int)
    sample = NYUDMT(str(root), "train")[0]
    known = stored != 0
    assert not known.all()
    np.testing.assert_array_equal(sample.valid["segmentation"], known)
    np.testing.assert_array_equal(sample.targets["segmentation"][known], stored[known] - 1)
    sample = NYUDMT(str(root), "train", classes=41)[0]
    assert bool(sample.valid["segmentation"].all())
    np.testing.assert_array_equal(sample.targets["segmentation"], stored)


@pytest.mark.parametrize("stored", [np.bool_, np.uint8, np.float64])
def test_edges_are_read_whatever_their_type(root, stored):
    edges = raw(0)["edge"]
    scale = 255 if stored is np.uint8 else 1
    (root / "edge" / "0003.npy").write_bytes(npy((edges * scale).astype(stored)))
    np.testing.assert_array_equal(NYUDMT(str(root), "train")[0].targets["edges"][0], edges)


def test_labels_of_another_size_are_fitted_to_the_photograph(root):
    arrays = raw(0)
    small = {name: arrays[name][::2, ::2] for name in ("depth", "normals")}
    for folder, array in small.items():
        (root / folder / "0003.npy").write_bytes(npy(array))
    sample = NYUDMT(str(root), "train")[0]
    block = np.ones((2, 2))
    np.testing.assert_array_equal(sample.targets["depth"][0], np.kron(small["depth"], block))
    np.testing.assert_allclose(
        sample.targets["normals"][1], np.kron(small["normals"][..., 1], block), atol=1e-6
    )


@pytest.mark.parametrize(
    ("folder", "task"),
    [
        ("segmentation", "segmentation"),
        ("depth", "depth"),
        ("normals", "normals"),
        ("edge", "edges"),
    ],
)
def test_a_missing_file_is_a_missing_label(root, folder, task):
    for file in (root / folder).iterdir():
        file.unlink()
    dataset = NYUDMT(str(root), "train")
    everything = {task.name for task in dataset.describe(None)}
    assert set(dataset[0].targets) == everything - {task}


def test_what_is_wrong_is_named(root):
    dataset = NYUDMT(str(root), "train")
    for path, data, message in (
        ("normals/0003.npy", npy(np.zeros(SIZE)), r"0003.npy: 1 channel\(s\) of float64 where 3"),
        ("edge/0004.npy", b"no", r"edge/0004.npy: neither an image nor .npy"),
    ):
        before = (root / path).read_bytes()
        (root / path).write_bytes(data)
        with pytest.raises(DataError, match=message):
            dataset[int(path[-5]) - 3]
        (root / path).write_bytes(before)
    (root / "segmentation/0003.png").write_bytes(picture(np.full(SIZE, 41, np.uint8)))
    with pytest.raises(DataError, match="segmentation label 40 is out of range"):
        collate([dataset[0]], dataset.describe(None))
    (root / "images" / "0003.jpg").unlink()
    with pytest.raises(DataError, match=r"images/0003.jpg: no such file"):
        dataset[0]


def test_splits_and_lists(root):
    with pytest.raises(UsageError, match="no split 'vall', only train, val, test; did you mean"):
        NYUDMT(str(root), "vall")
    with pytest.raises(UsageError, match=r"data\.root: nyud-mt"):
        NYUDMT(None, "train")
    (root / "gt_sets/val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"gt_sets/val.txt: lists no image"):
        NYUDMT(str(root), "val")
    (root / "gt_sets/test.txt").unlink()
    with pytest.raises(DataError, match=r"gt_sets/test.txt: no such file"):
        NYUDMT(str(root), "test")
