"""Cityscapes' numbers of classes, by which KITTI's labels are made too."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError
from mtlcore.datasets.cityscapes import CLASS_NAMES
from mtlcore.datasets.photographs import Label

StreetClasses = Literal[7, 19]

# Of the numbers in label files those that the benchmark counts, in the order of the 19 names, and
# the category of each (`id`, `trainId` and `category` of cityscapesScripts' helpers/labels.py).
_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CATEGORIES = (
    "flat", "flat", "construction", "construction", "construction", "object", "object", "object",
    "nature", "nature", "sky", "human", "human", "vehicle", "vehicle", "vehicle", "vehicle",
    "vehicle", "vehicle",
)  # fmt: skip
_LARGEST = 33


def _table(classes: StreetClasses) -> NDArray[np.int64]:
    table = np.full(256, -1, dtype=np.int64)
    names = CLASS_NAMES[7]
    table[list(_IDS)] = range(19) if classes == 19 else [names.index(c) for c in _CATEGORIES]
    return table


_TABLES: dict[StreetClasses, NDArray[np.int64]] = {7: _table(7), 19: _table(19)}


def classes_of_ids(ids: NDArray[Any], classes: StreetClasses, where: str) -> Label:
    """Return the classes that Cityscapes' numbers stand for, and where there is one.

    What its benchmark does not count is not valid: the void, and classes such as parking or
    caravan, in the 7 categories too.

    Args:
        ids: (H, W) uint8.
        classes: 19, or 7 for the categories.
        where: path of the file, for messages.

    Raises:
        DataError: there is a number that Cityscapes does not have.
    """
    largest = int(ids.max(initial=0))
    if largest > _LARGEST:
        raise DataError(
            f"{where}: holds {largest}, and Cityscapes' numbers of classes end at {_LARGEST}; "
            "files of colours, of instances or of train ids are others than those of labels"
        )
    values = _TABLES[classes][ids]
    return values, values >= 0
