"""Multi-MNIST: two handwritten digits in one picture, a task for each."""

from __future__ import annotations

import gzip
import zlib
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.random_numbers import hash_uniform
from mtlcore.errors import UsageError, describe
from mtlcore.loading import MissingFile, Root, check_split, image_tensor, open_root
from mtlcore.ranges import ProperFraction, Seed
from mtlcore.tasks import Task

CLASS_NAMES = tuple("0123456789")
_SIDE = 36


@final
class MultiMNIST(Dataset):
    """Pairs of MNIST digits on a canvas of 36x36, made from the raw idx files (plain or .gz).

    Tasks: upper_left and lower_right, the class of either digit. The digits overlap by 20 pixels,
    where the brighter pixel is seen (Sabour, Frosst and Hinton, "Dynamic Routing Between
    Capsules", NIPS 2017; Sener and Koltun, NeurIPS 2018). The grey picture is repeated in three
    channels.

    There are as many pairs as digits: each digit is the upper left one of one pair, and its partner
    is drawn from the digits of the same split by a hash of the seed and its number, so that no
    digit is in two splits and a pair is the same everywhere.

    Args:
        root: the folder with the files, a local path or an fsspec URL.
        split: "train", "val" or "test"; the first two share the digits of `digits`, "test" has
            those of `t10k`.
        digits: the files that training and validation are made from: "train" or "t10k", with which
            their names begin.
        val_fraction: fraction of these digits that is kept for validation.
        seed: of the choice of partners and of the digits for validation.

    Raises:
        UsageError: there is no such split or no root, or the fraction is not between 0 and 1.
        DataError: a file is missing, or is not an idx file of 28x28 digits.
    """

    splits = ("train", "val", "test")
    input_kind = "image"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        digits: Literal["train", "t10k"] = "train",
        val_fraction: ProperFraction = 1 / 6,
        seed: Seed = 0,
    ) -> None:
        files = open_root("multi-mnist", root, "the folder they lie in")
        check_split("multi-mnist", split, self.splits)
        if split == "test" and digits == "t10k":
            raise UsageError("data.digits: 't10k' is trained on, nothing is left for a test")
        if not 0 < val_fraction < 1:
            raise UsageError(f"data.val_fraction: {val_fraction} must lie between 0 and 1")
        source = "t10k" if split == "test" else digits
        self._root, self._split = files, split
        images = _read(files, f"{source}-images-idx3-ubyte", dimensions=3)
        classes = _read(files, f"{source}-labels-idx1-ubyte", dimensions=1)
        if images.shape[1:] != (28, 28) or len(images) != len(classes):
            raise DataError(
                f"{files.where(source)}-*: images of shape {images.shape} and labels of shape "
                f"{classes.shape}; as many labels as images of 28x28 were expected"
            )
        # A digit's place in the two runs of the hash is its number in the file.
        shares, draws = (hash_uniform(2 * seed + which, len(images)) for which in (0, 1))
        in_val = shares < val_fraction
        chosen = {"train": ~in_val, "val": in_val, "test": np.ones_like(in_val)}[split]
        self._numbers = np.flatnonzero(chosen)
        self._partners = (draws[self._numbers] * len(self._numbers)).astype(np.int64)
        self._images, self._classes = images[self._numbers], classes[self._numbers]

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return the tasks: the upper left and the lower right digit."""
        upper_left, lower_right = (
            Task(name=name, kind="classification", channels=10, class_names=CLASS_NAMES)
            for name in ("upper_left", "lower_right")
        )
        return upper_left, lower_right

    def __len__(self) -> int:
        return len(self._numbers)

    def name_of(self, index: int) -> str | None:
        """Return the number of the first digit in its file."""
        return str(self._numbers[index])

    def __getitem__(self, index: int) -> Sample:
        """Return one pair of digits; its key ends in the number of the first digit in its file."""
        partner = self._partners[index]
        canvas = np.zeros((_SIDE, _SIDE), dtype=np.uint8)
        canvas[:28, :28] = self._images[index]
        corner = canvas[-28:, -28:]
        np.maximum(corner, self._images[partner], out=corner)
        key = f"{self._root.root}/{self._split}/{self._numbers[index]}"
        pair = {"upper_left": index, "lower_right": partner}
        return Sample(
            inputs=image_tensor(canvas, key).contiguous(),
            targets={task: torch.tensor(int(self._classes[at])) for task, at in pair.items()},
            valid={task: torch.tensor(True) for task in pair},
            key=key,
        )


def _read(root: Root, name: str, dimensions: int) -> NDArray[np.uint8]:
    """Return the bytes of an idx file in their shape."""
    try:
        where, data = root.where(f"{name}.gz"), root.read_bytes(f"{name}.gz")
    except MissingFile:
        where, data = root.where(name), root.read_bytes(name)
    try:
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where}: cannot be read: {describe(error)}") from error
    # Two zeros, the type (8: unsigned bytes), the number of dimensions, and each one's length.
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{where}: no idx file of bytes in {dimensions} dimension(s)")
    shape = tuple(np.frombuffer(data, dtype=">u4", count=dimensions, offset=4).tolist())
    values = np.frombuffer(data, dtype=np.uint8, offset=start)
    if values.size != int(np.prod(shape)):
        raise DataError(f"{where}: {values.size} bytes where {shape} was announced")
    return values.reshape(shape)
