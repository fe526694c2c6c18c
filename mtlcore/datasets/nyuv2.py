"""NYUv2 as the MTAN authors published it: one .npy file per image and label."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcore.data import DataError, Dataset, Sample, check_split
from mtlcore.errors import UsageError
from mtlcore.loading import Root, decode_image, decode_label, unit_normals
from mtlcore.tasks import Task

CLASS_NAMES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects",
    "picture", "sofa", "table", "tv", "wall", "window",
)  # fmt: skip
_FOLDERS = {"segmentation": ("label", 1), "depth": ("depth", 1), "normals": ("normal", 3)}


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

    def __init__(self, root: str | None, split: str) -> None:
        if root is None:
            raise UsageError("data.root: nyuv2 reads files; give the folder that holds train/")
        check_split("nyuv2", split, self.splits)
        self._root = Root(root)
        self._split = split
        self._numbers = self._root.numbers(f"{split}/image")

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Segmentation, depth and normals."""
        return (
            Task(
                name="segmentation",
                kind="segmentation",
                channels=len(CLASS_NAMES),
                class_names=CLASS_NAMES,
            ),
            Task(name="depth", kind="depth", channels=1, unit="m"),
            Task(name="normals", kind="normals", channels=3),
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        """One photograph and its three labels.

        Raises:
            DataError: a file is missing or unreadable, an image is not in [0, 1], or a label has
                another size than its image.
        """
        number = self._numbers[index]
        path = f"{self._split}/image/{number}.npy"
        key = self._root.where(path)
        inputs = decode_image(self._root.read_bytes(path), key)
        targets, valid = {}, {}
        for name, (folder, channels) in _FOLDERS.items():
            planes = self._read(f"{self._split}/{folder}/{number}.npy", channels, inputs.shape[1:])
            targets[name], valid[name] = _DECODERS[name](planes)
        return Sample(inputs=inputs, targets=targets, valid=valid, key=key)

    def _read(self, path: str, channels: int, size: tuple[int, ...]) -> NDArray[Any]:
        where = self._root.where(path)
        array = decode_label(self._root.read_bytes(path), where)
        array = array[..., None] if array.ndim == 2 else array
        if array.shape != (*size, channels):
            raise DataError(
                f"{where}: shape {array.shape} where the image's {tuple(size)} and {channels} "
                "channel(s) were expected"
            )
        return array.transpose(2, 0, 1)


def _segmentation(planes: NDArray[Any]) -> tuple[Tensor, Tensor]:
    classes = planes[0].astype(np.int64, order="C")
    return torch.from_numpy(classes), torch.from_numpy(classes != -1)


def _depth(planes: NDArray[Any]) -> tuple[Tensor, Tensor]:
    depth = planes.astype(np.float32, order="C")
    return torch.from_numpy(depth), torch.from_numpy(depth[0] != 0)


def _normals(planes: NDArray[Any]) -> tuple[Tensor, Tensor]:
    # Whether a normal is there is asked of its length: its channels may well add up to zero.
    normals = planes.astype(np.float32, order="C")
    known = unit_normals(normals)
    return torch.from_numpy(normals), torch.from_numpy(known)


_DECODERS = {"segmentation": _segmentation, "depth": _depth, "normals": _normals}
