"""The MTAN layout, from files written in its exact format."""

import numpy as np
import pytest
import torch

from mtlcore.data import DataError, collate
from mtlcore.datasets.nyuv2 import NYUv2
from mtlcore.errors import UsageError

SIZE = (9, 12)


def arrays(number):
    rng = np.random.default_rng(number)
    label = rng.integers(-1, 13, SIZE).astype(np.float64)
    depth = rng.uniform(0.7, 9.0, (*SIZE, 1))
    depth[:2] = 0
    normal = rng.normal(size=(*SIZE, 3))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    normal[:, :3] = 0
    normal[0, 5] = [np.sqrt(0.5), -np.sqrt(0.5), 0]  # adds up to zero and is valid
    return {
        "image": rng.uniform(0, 1, (*SIZE, 3)),
        "label": label,
        "depth": depth,
        "normal": normal,
    }


def write(root, split="train", numbers=(0,), **changes):
    for number in numbers:
        for folder, array in {**arrays(number), **changes}.items():
            directory = root / split / folder
            directory.mkdir(parents=True, exist_ok=True)
            np.save(directory / f"{number}.npy", array)
    return str(root)


def test_reads_the_published_layout(tmp_path):
    dataset = NYUv2(write(tmp_path), "train")
    sample, raw = dataset[0], arrays(0)
    tasks = dataset.describe(None)
    assert [(task.name, task.channels, task.unit) for task in tasks] == [
        ("segmentation", 13, ""),
        ("depth", 1, "m"),
        ("normals", 3, ""),
    ]
    assert tasks[0].class_names[0] == "bed"
    assert tasks[0].class_names[12] == "window"
    for task in tasks:
        assert sample.targets[task.name].shape == task.target_shape(SIZE)
        assert sample.valid[task.name].shape == SIZE
    np.testing.assert_allclose(sample.inputs.permute(1, 2, 0), raw["image"], atol=1e-6)
    np.testing.assert_array_equal(sample.targets["segmentation"], raw["label"])
    np.testing.assert_allclose(sample.targets["depth"][0], raw["depth"][..., 0], rtol=1e-6)
    np.testing.assert_allclose(sample.targets["normals"].permute(1, 2, 0), raw["normal"], atol=1e-6)
    batch = collate([sample], tasks)
    assert batch.count == {
        "segmentation": int((raw["label"] >= 0).sum()),
        "depth": 7 * 12,
        "normals": 9 * 9,
    }


def test_a_normal_whose_channels_add_up_to_zero_is_valid(tmp_path):
    assert bool(NYUv2(write(tmp_path), "train")[0].valid["normals"][0, 5])


def test_other_data_types_and_shapes_are_read_alike(tmp_path):
    raw = arrays(0)
    changes = {
        "image": raw["image"].astype(np.float32),
        "label": raw["label"].astype(np.int8)[..., None],
        "depth": raw["depth"].astype(np.float16)[..., 0],
    }
    plain = NYUv2(write(tmp_path / "a"), "train")[0]
    other = NYUv2(write(tmp_path / "b", **changes), "train")[0]
    assert torch.equal(plain.targets["segmentation"], other.targets["segmentation"])
    assert torch.equal(plain.valid["segmentation"], other.valid["segmentation"])
    torch.testing.assert_close(plain.targets["depth"], other.targets["depth"], rtol=1e-3, atol=0)


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    dataset = NYUv2(write(tmp_path, "val", numbers=(10, 2, 0)), "val")
    assert [dataset[i].key.rpartition("/")[2] for i in range(len(dataset))] == [
        "0.npy",
        "2.npy",
        "10.npy",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.full((*SIZE, 3), 180.0)}, r"image values from 180 to 180; .*in \[0, 1\]"),
        ({"depth": np.ones((4, 5, 1))}, r"depth/0.npy: shape \(4, 5, 1\) where \(9, 12, 1\)"),
        ({"normal": np.ones(SIZE)}, r"normal/0.npy: shape \(9, 12\) where \(9, 12, 3\)"),
    ],
)
def test_files_of_another_layout_are_refused(tmp_path, changes, message):
    dataset = NYUv2(write(tmp_path, **changes), "train")
    with pytest.raises(DataError, match=message):
        dataset[0]


def test_a_class_number_out_of_range_is_found(tmp_path):
    dataset = NYUv2(write(tmp_path, label=np.full(SIZE, 255, np.uint8)), "train")
    with pytest.raises(DataError, match="label 255 is out of range"):
        collate([dataset[0]], dataset.describe(None))


def test_what_is_missing_is_named(tmp_path):
    root = write(tmp_path)
    (tmp_path / "train" / "depth" / "0.npy").unlink()
    with pytest.raises(DataError, match=r"train/depth/0.npy: no such file"):
        NYUv2(root, "train")[0]
    with pytest.raises(DataError, match=r"val/image: no such file or directory"):
        NYUv2(root, "val")
    with pytest.raises(DataError, match=r"nowhere: no such directory"):
        NYUv2(str(tmp_path / "nowhere"), "train")
    with pytest.raises(UsageError, match="no split 'vall', only train, val; did you mean 'val'"):
        NYUv2(root, "vall")
    with pytest.raises(UsageError, match=r"data\.root"):
        NYUv2(None, "train")


def test_a_folder_with_other_files_is_refused(tmp_path):
    root = write(tmp_path)
    np.save(tmp_path / "train" / "image" / "image_7.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"train/image: holds 'image_7'"):
        NYUv2(root, "train")
