"""NYUv2 as the MTAN authors published it: one .npy file per image and label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mtlcore.data import Dataset, Sample
from mtlcore.datasets.dense_tasks import DEPTH, NORMALS, segmentation
from mtlcore.datasets.photographs import Label, make_sample, read_label, read_photograph
from mtlcore.loading import check_split, open_root, unit_normals
from mtlcore.tasks import Task

CLASS_NAMES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects",
    "picture", "sofa", "table", "tv", "wall", "window",
)  # fmt: skip


@final
class NYUv2(Dataset):
    """`{train,val}/{image,label,depth,normal}/{i}.npy`: 795 and 654 indoor photographs, 288x384.

    Tasks: segmentation (13 classes; -1 is invalid), depth (m; 0 is invalid) and normals (all zero
    is invalid). The normals are scaled to unit length and otherwise kept as they are: the layout
    does not say which camera frame they are in. They are pseudo-labels, fitted to the depth.

    Args:
        root: the folder that holds `train` and `val`, a local path or an fsspec URL.
        split: "train" or "val".

    Raises:
        UsageError: there is no such split, or no root.
        DataError: the split's folder is missing, empty or holds other files.
    """

    input_kind = "image"

    def __init__(self, root: str | None, split: str) -> None:
        self._root = open_root("nyuv2", root, "the folder that holds train/")
        check_split("nyuv2", split, self.splits)
        self._split = split
        self._numbers = self._root.numbers(f"{split}/image")

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return the tasks: segmentation, depth and normals."""
        return (
            segmentation(CLASS_NAMES),
            DEPTH,
            NORMALS,
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def name_of(self, index: int) -> str | None:
        """Return the number of a sample's files."""
        return str(self._numbers[index])

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph and its three labels.

        Raises:
            DataError: a file is missing or unreadable, an image is not in [0, 1], or a label has
                another size than its image.
        """
        number = self._numbers[index]
        inputs, key = read_photograph(self._root, f"{self._split}/image/{number}.npy")
        labels = {}
        for name, (folder, channels, decode) in _FILES.items():
            path = f"{self._split}/{folder}/{number}.npy"
            raw = read_label(self._root, path, channels, size=inputs.shape[1:])
            labels[name] = decode(raw.transpose(2, 0, 1))
        return make_sample(inputs, labels, key)


def _segmentation(planes: NDArray[Any]) -> Label:
    classes = planes[0].astype(np.int64, order="C")
    return classes, classes != -1


def _depth(planes: NDArray[Any]) -> Label:
    depth = planes.astype(np.float32, order="C")
    return depth, depth[0] != 0


def _normals(planes: NDArray[Any]) -> Label:
    # The length tells whether there is a normal: its channels may well add up to zero.
    normals = planes.astype(np.float32, order="C")
    known = unit_normals(normals)
    return normals, known


# Per task the folder of its files, their channels, and how the planes (C, H, W) are decoded.
_FILES: dict[str, tuple[str, int, Callable[[NDArray[Any]], Label]]] = {
    "segmentation": ("label", 1, _segmentation),
    "depth": ("depth", 1, _depth),
    "normals": ("normal", 3, _normals),
}
