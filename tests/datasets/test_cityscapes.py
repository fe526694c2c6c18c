"""MTAN's layout of Cityscapes, from files written in its exact format."""

import numpy as np
import pytest
import torch

from mtlcore.data import DataError, collate
from mtlcore.datasets.cityscapes import Cityscapes
from mtlcore.errors import UsageError
from mtlcore.loading.transforms import zoom
from mtlcore.testing import DatasetContract

SIZE = (8, 16)
LARGEST = 32_257 / 65_535  # what the published files hold at most


def arrays(number):
    rng = np.random.default_rng(number)
    depth = rng.uniform(0.001, LARGEST, (*SIZE, 1))
    depth[:3] = 0
    labels = {f"label_{n}": rng.integers(-1, n, SIZE).astype(np.float64) for n in (2, 7, 19)}
    return {"image": rng.uniform(0, 1, (*SIZE, 3)), **labels, "depth": depth}


def write(root, splits=("train", "val"), numbers=(0, 1), without=(), **changes):
    for i, split in enumerate(splits):
        for number in numbers:
            for folder, array in {**arrays(100 * i + number), **changes}.items():
                if folder not in without:
                    (root / split / folder).mkdir(parents=True, exist_ok=True)
                    np.save(root / split / folder / f"{number}.npy", array)
    return str(root)


class TestContract(DatasetContract):
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path)

    def make(self, split):
        return Cityscapes(self.root, split)

    def tasks(self):
        return Cityscapes.describe(self.root)


def test_depth_in_metres_is_that_of_the_camera(tmp_path):
    """By Cityscapes' own description: d = (p - 1) / 256 pixels, depth = baseline * focal / d."""
    stored = np.array([[0, 1, 200, 256, 257, 1025, 32_257]], dtype=np.float64).repeat(8, 0)
    depth = np.pad(stored, ((0, 0), (0, 9)))[..., None] / 65_535
    root = write(tmp_path, depth=depth)
    dataset = Cityscapes(root, "train", depth="metres")
    assert [(t.name, t.unit) for t in dataset.describe(root, depth="metres")][1] == ("depth", "m")
    sample = dataset[0]
    assert set(sample.targets) == {"segmentation", "depth"}
    assert sample.valid["depth"][0, :8].tolist() == [False] * 4 + [True] * 3 + [False]
    metres = sample.targets["depth"][0, 0, 4:7].tolist()
    assert metres == pytest.approx([473.575, 473.575 / 4, 473.575 / 126], rel=1e-4)
    batch = collate([sample], dataset.describe(root, depth="metres"))
    assert batch.count["depth"] == 8 * 3


@pytest.mark.parametrize("classes", [2, 7, 19])
def test_reads_the_published_layout(tmp_path, classes):
    dataset, raw = Cityscapes(write(tmp_path), "train", classes=classes), arrays(0)
    tasks = dataset.describe(None, classes=classes)
    assert [(task.name, task.kind, task.channels) for task in tasks] == [
        ("segmentation", "segmentation", classes),
        ("inverse_depth", "inverse-depth", 1),
    ]
    assert len(tasks[0].class_names) == classes
    sample = dataset[0]
    np.testing.assert_allclose(sample.inputs.permute(1, 2, 0), raw["image"], atol=1e-6)
    np.testing.assert_array_equal(sample.targets["segmentation"], raw[f"label_{classes}"])
    np.testing.assert_array_equal(sample.valid["segmentation"], raw[f"label_{classes}"] >= 0)
    inverse = sample.targets["inverse_depth"]
    np.testing.assert_allclose(inverse[0], raw["depth"][..., 0], rtol=1e-6)
    assert collate([sample], tasks).count["inverse_depth"] == 5 * 16


def test_one_folder_of_labels_has_seven_classes(tmp_path):
    raw = arrays(0)["label_7"]
    root = write(tmp_path, without=("label_2", "label_7", "label_19"), label=raw)
    sample = Cityscapes(root, "train")[0]
    np.testing.assert_array_equal(sample.targets["segmentation"], raw)
    with pytest.raises(DataError, match=r"train/label_19/0.npy: no such file"):
        Cityscapes(root, "train", classes=19)[0]


def test_inverse_depth_grows_where_the_picture_is_enlarged(tmp_path):
    dataset = Cityscapes(write(tmp_path), "train")
    tasks, sample = dataset.describe(None), dataset[0]
    near = zoom(sample, tasks, (4, 8, 4, 8), 2.0)
    assert torch.equal(
        near.targets["inverse_depth"][:, ::2, ::2],
        2 * sample.targets["inverse_depth"][:, 4:, 8:],
    )


def test_missing_labels_become_harmless(tmp_path):
    # A relative error divides by the label.
    dataset = Cityscapes(write(tmp_path), "train")
    batch = collate([dataset[0]], dataset.describe(None))
    assert float(batch.targets["inverse_depth"].min()) > 0


def test_what_is_wrong_is_named(tmp_path):
    root = write(tmp_path, depth=np.ones((4, 5, 1)))
    with pytest.raises(DataError, match=r"depth/0.npy: shape \(4, 5, 1\) .* \(8, 16\)"):
        Cityscapes(root, "train")[0]
    with pytest.raises(UsageError, match="no split 'vall', only train, val; did you mean 'val'"):
        Cityscapes(root, "vall")
    with pytest.raises(UsageError, match=r"data\.root: cityscapes"):
        Cityscapes(None, "train")
    with pytest.raises(DataError, match="nowhere: no such directory"):
        Cityscapes(str(tmp_path / "nowhere"), "train")
    np.save(tmp_path / "train" / "image" / "image_7.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"train/image: holds 'image_7'"):
        Cityscapes(root, "train")
