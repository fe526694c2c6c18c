"""Two digits in one picture, from idx files written here and from the published ones."""

import gzip
import struct

import numpy as np
import pytest
import torch

from mtlcore.data import DataError, collate
from mtlcore.datasets.multi_mnist import MultiMNIST
from mtlcore.errors import UsageError
from mtlcore.testing import DatasetContract


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def digits(count, seed=0):
    """Every image is of one grey level, so that it can be told which digit is where."""
    rng = np.random.default_rng(seed)
    levels = rng.permutation(np.arange(1, count + 1)).astype(np.uint8)
    images = np.broadcast_to(levels[:, None, None], (count, 28, 28))
    return np.ascontiguousarray(images), (levels % 10).astype(np.uint8)


def write(root, packed=False, **counts):
    for source, count in ({"train": 60, "t10k": 20} | counts).items():
        images, labels = digits(count, seed=len(source))
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = gzip.compress(idx(array)) if packed else idx(array)
            file = f"{source}-{name}-ubyte" + (".gz" if packed else "")
            (root / file).write_bytes(data)
    return str(root)


class TestContract(DatasetContract):
    splits = ("train", "val", "test")

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path)

    def make(self, split):
        return MultiMNIST(self.root, split)

    def tasks(self):
        return MultiMNIST.describe(self.root)


@pytest.mark.parametrize("packed", [False, True])
def test_each_digit_lies_in_its_corner(tmp_path, packed):
    dataset = MultiMNIST(write(tmp_path, packed), "train")
    for i in range(len(dataset)):
        sample = dataset[i]
        assert sample.inputs.shape == (3, 36, 36)
        assert torch.equal(sample.inputs[0], sample.inputs[2])
        levels = (sample.inputs[0] * 255).round().int()
        upper, lower = int(levels[0, 0]), int(levels[35, 35])
        assert int(sample.targets["upper_left"]) == upper % 10
        assert int(sample.targets["lower_right"]) == lower % 10
        assert bool((levels[:28, :8] == upper).all())
        assert bool((levels[28:, 8:] == lower).all())
        assert bool((levels[8:28, 8:28] == max(upper, lower)).all())
        assert not levels[28:, :8].any()
        assert not levels[:8, 28:].any()


def levels_of(dataset):
    images = [(dataset[i].inputs[0] * 255).round().int() for i in range(len(dataset))]
    return {int(m[0, 0]) for m in images}, {int(m[35, 35]) for m in images}


def test_no_digit_is_in_two_splits(tmp_path):
    root = write(tmp_path)
    (train, train_partners), (val, val_partners) = (
        levels_of(MultiMNIST(root, split)) for split in ("train", "val")
    )
    assert train | val == set(range(1, 61))
    assert not train & val
    assert train_partners <= train
    assert val_partners <= val
    assert len(MultiMNIST(root, "test")) == 20


def test_pairs_depend_on_the_seed_alone(tmp_path):
    root = write(tmp_path)
    one, same, other = (MultiMNIST(root, "train", seed=seed) for seed in (0, 0, 1))
    assert [one[i].key for i in range(8)] == [same[i].key for i in range(8)]
    assert all(torch.equal(one[i].inputs, same[i].inputs) for i in range(8))
    assert any(one[i].key != other[i].key for i in range(8))


def test_the_share_of_validation(tmp_path):
    root = write(tmp_path, train=250)
    sizes = [len(MultiMNIST(root, split, val_fraction=0.5)) for split in ("train", "val")]
    assert sum(sizes) == 250
    assert 90 < sizes[1] < 160
    for fraction in (0.0, 1.0):
        with pytest.raises(UsageError, match=r"data\.val_fraction"):
            MultiMNIST(root, "train", val_fraction=fraction)


def test_what_is_wrong_is_named(tmp_path):
    root = write(tmp_path)
    with pytest.raises(UsageError, match=r"no split 'tets'.*did you mean 'test'"):
        MultiMNIST(root, "tets")
    with pytest.raises(UsageError, match=r"data\.root: multi-mnist"):
        MultiMNIST(None, "train")
    with pytest.raises(UsageError, match=r"data\.digits: 't10k' is trained on"):
        MultiMNIST(root, "test", digits="t10k")
    labels = tmp_path / "train-labels-idx1-ubyte"
    for data, message in (
        (idx(np.zeros((4, 4), np.uint8)), r"ubyte: no idx file of bytes in 1 dimension\(s\)"),
        (labels.read_bytes()[:-1], r"ubyte: 59 bytes where \(60,\) was announced"),
        (idx(np.zeros(7, np.uint8)), r"train-\*: images of shape \(60, 28, 28\) and labels of"),
        (gzip.compress(labels.read_bytes())[:-9], r"ubyte: cannot be read: "),
    ):
        labels.write_bytes(data)
        with pytest.raises(DataError, match=message):
            MultiMNIST(root, "train")
    labels.unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte: no such file"):
        MultiMNIST(root, "train")


def test_the_published_digits(real_data):
    root = str(real_data("mnist_t10k"))
    train, val = (MultiMNIST(root, split, digits="t10k") for split in ("train", "val"))
    assert len(train) + len(val) == 10_000
    assert len(val) == pytest.approx(10_000 / 6, rel=0.05)
    samples = [train[i] for i in range(2000)]
    batch = collate(samples, MultiMNIST.describe(None))
    for task in ("upper_left", "lower_right"):
        share = torch.bincount(batch.targets[task], minlength=10) / 2000
        assert float(share.min()) > 0.07
        assert float(share.max()) < 0.13
    # Digits are bright in the middle of their corners, and the two are not the same picture.
    mean = batch.inputs[:, 0].mean(0)
    assert float(mean[4:24, 4:24].mean()) > 4 * float(mean[:3].mean())
    assert bool((batch.targets["upper_left"] != batch.targets["lower_right"]).any())
