"""NYUv2 as its authors publish it: one MATLAB file with all labelled photographs."""

from __future__ import annotations

from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets import nyud_mt, nyuv2
from mtlcore.datasets.dense_tasks import DEPTH, segmentation
from mtlcore.datasets.matlab import (
    hdf5_array,
    hdf5_texts,
    need_scipy,
    opened_hdf5,
    read_variable,
)
from mtlcore.datasets.photographs import Label, make_sample
from mtlcore.loading import MissingFile, Root, check_split, image_tensor, open_root
from mtlcore.tasks import Task

Classes = Literal[13, 40, 894]

_NAME = "nyuv2-mat"
_FILE, _SPLITS, _MAPPING = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
_VARIABLES = {"train": "trainNdxs", "val": "testNdxs"}
# Of each of the 40 classes its number among the 13, from 1: class13Mapping.mat, and SceneNet's
# table, which agree.
_FORTY_TO_THIRTEEN = (
    12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5,
    7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6, 7,
)  # fmt: skip


@final
class NYUv2Mat(Dataset):
    """`nyu_depth_v2_labeled.mat`: 795 and 654 indoor photographs, 480x640.

    Tasks: segmentation (0, unlabelled, is invalid) and depth (m), the file's `depths`, whose holes
    its authors have filled. Photographs keep their white border.

    Beside the file lies `splits.mat`, whose test photographs are the split "val", as everywhere
    here; for 13 or 40 classes also `classMapping40.mat`, which says which of the 894 are one. Needs
    h5py and scipy.

    Args:
        root: the folder of these files, a local path or an fsspec URL.
        split: "train" or "val".
        classes: 40; 13; or 894, all that the file names.

    Raises:
        UsageError: there is no such split or no root, or h5py or scipy is not installed.
        DataError: a file is missing or holds something else.
    """

    input_kind = "image"

    def __init__(self, root: str | None, split: str, *, classes: Classes = 40) -> None:
        need_scipy(_NAME)
        self._root = _open_root(root)
        check_split(_NAME, split, self.splits)
        with opened_hdf5(self._root, _FILE, _NAME) as file:
            shapes = [self._array(file, name).shape for name in ("images", "depths", "labels")]
            names = len(hdf5_texts(file, "names", self._where))
        count, *image = shapes[0]
        if shapes[1:] != [(count, *image[1:])] * 2:
            raise DataError(
                f"{self._where}: images, depths and labels have the shapes "
                f"{', '.join(map(str, shapes))}; not those of one dataset"
            )
        self._numbers = self._read_split(split, count)
        self._classes = self._read_mapping(classes, names)

    @classmethod
    def describe(
        cls, root: str | None, *, classes: Classes = 40, **settings: Any
    ) -> tuple[Task, ...]:
        """Return the tasks: segmentation and depth."""
        if classes == 894:
            files = _open_root(root)
            with opened_hdf5(files, _FILE, _NAME) as file:
                names: tuple[str, ...] = hdf5_texts(file, "names", files.where(_FILE))
        else:
            names = nyuv2.CLASS_NAMES if classes == 13 else nyud_mt.CLASS_NAMES
        return (segmentation(names), DEPTH)

    def __len__(self) -> int:
        return len(self._numbers)

    def name_of(self, index: int) -> str | None:
        """Return the number of a photograph in the file, from 1."""
        return str(self._numbers[index])

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph with its two labels.

        Raises:
            DataError: the file cannot be read, or holds a class that is not named.
        """
        number = self._numbers[index]
        key = f"{self._where}/{number}"
        with opened_hdf5(self._root, _FILE, _NAME) as file:
            # MATLAB's order of dimensions, the other way round: (C, W, H) and (W, H).
            pixels, depth, classes = (
                self._array(file, name)[number - 1] for name in ("images", "depths", "labels")
            )
        labels = {
            "segmentation": self._segmentation(classes.T, key),
            "depth": _depth(depth.T),
        }
        return make_sample(image_tensor(pixels.T, key), labels, key)

    @property
    def _where(self) -> str:
        return self._root.where(_FILE)

    def _array(self, file: Any, name: str) -> Any:
        dimensions, kinds = _ARRAYS[name]
        array = hdf5_array(file, name, self._where)
        if array.ndim != dimensions or array.dtype.kind not in kinds:
            raise DataError(
                f"{self._where}: {name!r} is {array.dtype} of shape {array.shape}, which is not "
                "that of NYUv2's labelled photographs"
            )
        return array

    def _segmentation(self, numbers: NDArray[Any], key: str) -> Label:
        largest = int(numbers.max(initial=0))
        if largest >= len(self._classes):
            raise DataError(
                f"{key}: holds the class {largest}, and only {len(self._classes) - 1} are named"
            )
        classes = self._classes[numbers]
        return classes, classes >= 0

    def _read_split(self, split: str, count: int) -> list[int]:
        try:
            stored = read_variable(self._root, _SPLITS, _VARIABLES[split], _NAME)
        except MissingFile as error:
            raise DataError(
                f"{error}; it says which photographs are for training: the file of the authors' "
                "page with the train and test split"
            ) from error
        numbers = _whole(stored, count)
        if numbers is None:
            raise DataError(
                f"{self._root.where(_SPLITS)}: {_VARIABLES[split]!r} does not hold numbers of "
                f"photographs from 1 to {count}"
            )
        return [int(number) for number in numbers]

    def _read_mapping(self, classes: Classes, names: int) -> NDArray[np.int64]:
        """Return what each number in the file becomes: a class, or -1."""
        if classes == 894:
            return np.arange(-1, names)
        try:
            stored = read_variable(self._root, _MAPPING, "mapClass", _NAME)
        except MissingFile as error:
            raise DataError(
                f"{error}; it says which of the 894 classes are one of the 40, and comes with "
                "ankurhanda/nyuv2-meta-data and others; data.classes = 894 needs no such file"
            ) from error
        forty = _whole(stored, 40)
        if forty is None or len(forty) != names:
            raise DataError(
                f"{self._root.where(_MAPPING)}: 'mapClass' does not give each of the {names} "
                "classes a number from 1 to 40"
            )
        chosen = forty if classes == 40 else np.array(_FORTY_TO_THIRTEEN)[forty - 1]
        return np.concatenate([[-1], chosen - 1])


# Per array its dimensions and what numbers it holds.
_ARRAYS = {"images": (4, "u"), "depths": (3, "f"), "labels": (3, "u")}


def _open_root(root: str | None) -> Root:
    return open_root(_NAME, root, f"the folder that holds {_FILE}")


def _whole(stored: NDArray[Any], largest: int) -> NDArray[np.int64] | None:
    """Return a row of whole numbers from 1 to `largest`; None where it is something else."""
    numbers = np.atleast_1d(stored)
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iuf":
        return None
    within = bool(np.all((numbers >= 1) & (numbers <= largest) & (numbers == np.round(numbers))))
    return numbers.astype(np.int64) if within else None


def _depth(metres: NDArray[Any]) -> Label:
    depth = metres.astype(np.float32, order="C")
    return depth[None], depth > 0
