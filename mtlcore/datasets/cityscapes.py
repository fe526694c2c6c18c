"""Cityscapes as the MTAN authors published it: one .npy file per image and label."""

from __future__ import annotations

from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from mtlcore.data import Dataset, Sample
from mtlcore.datasets.dense_tasks import DEPTH, inverse_depth, segmentation
from mtlcore.datasets.photographs import Label, make_sample, read_label, read_photograph
from mtlcore.loading import check_split, open_root
from mtlcore.tasks import Task

# In the order of Cityscapes' own numbers; the files themselves do not name their classes.
CLASS_NAMES: dict[int, tuple[str, ...]] = {
    2: ("background", "foreground"),
    7: ("flat", "construction", "object", "nature", "sky", "human", "vehicle"),
    19: (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
        "motorcycle", "bicycle",
    ),
}  # fmt: skip
# Metres times pixels: baseline and focal length of the camera of most photographs.
_FOCAL_BASELINE = 0.209313 * 2262.52
FARTHEST = 1.0  # pixels of disparity; what has less is farther than the matching can tell
_PLAIN_LABEL = "label"  # LibMTL's layout has one folder of labels, with 7 classes


@final
class Cityscapes(Dataset):
    """`{train,val}/{image,label_2,label_7,label_19,depth}/{i}.npy`: 2,975 and 500, 128x256.

    Tasks: segmentation (-1 is invalid) and inverse_depth. What the files call depth is the
    disparity that Cityscapes stores, divided by 65,535 (0 is invalid, the largest value is 0.49).
    It is larger for nearer things and has no unit, so its relative error is not that of a depth in
    metres. Which photograph of Cityscapes a number stands for was never published.

    With `depth = "metres"` the second task is depth instead: p = 65,535 times the value stands for
    (p - 1) / 256 pixels of disparity, and 473.57 m, the product of the camera's baseline and focal
    length, is divided by them; below one pixel it is invalid. These are the constants of most
    photographs, and the files do not tell which have others.

    Args:
        root: the folder that holds `train` and `val`, a local path or an fsspec URL.
        split: "train" or "val".
        classes: 2 (background and foreground), 7 (Cityscapes' categories) or 19 (its classes).
            With 7, the folder may also be called `label`, as LibMTL has it.
        depth: the second task, inverse depth as the files have it, or depth in metres.

    Raises:
        UsageError: there is no such split, or no root.
        DataError: the split's folder is missing, empty or holds other files.
    """

    input_kind = "image"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        classes: Literal[2, 7, 19] = 7,
        depth: Literal["inverse", "metres"] = "inverse",
    ) -> None:
        self._root = open_root("cityscapes", root, "the folder that holds train/")
        check_split("cityscapes", split, self.splits)
        self._split, self._metric = split, depth == "metres"
        self._numbers = self._root.numbers(f"{split}/image")
        own = self._root.exists(f"{split}/label_{classes}")
        plain = classes == 7 and not own and self._root.exists(f"{split}/{_PLAIN_LABEL}")
        self._label = _PLAIN_LABEL if plain else f"label_{classes}"

    @classmethod
    def describe(
        cls,
        root: str | None,
        *,
        classes: Literal[2, 7, 19] = 7,
        depth: Literal["inverse", "metres"] = "inverse",
        **settings: Any,
    ) -> tuple[Task, ...]:
        """Return the tasks: segmentation, and inverse depth or depth."""
        return (
            segmentation(CLASS_NAMES[classes]),
            DEPTH if depth == "metres" else inverse_depth(),
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def name_of(self, index: int) -> str | None:
        """Return the number of a sample's files."""
        return str(self._numbers[index])

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph and its two labels.

        Raises:
            DataError: a file is missing or unreadable, an image is not in [0, 1], or a label has
                another size than its image.
        """
        number = self._numbers[index]
        inputs, key = read_photograph(self._root, f"{self._split}/image/{number}.npy")
        size = inputs.shape[1:]
        classes = self._read(self._label, number, size).astype(np.int64)
        inverse = self._read("depth", number, size).astype(np.float32)
        labels: dict[str, Label] = {"segmentation": (classes, classes != -1)}
        if self._metric:
            disparity = (np.rint(inverse * np.float32(65_535)) - 1) / 256
            known = disparity >= FARTHEST
            metres = np.float32(_FOCAL_BASELINE) / disparity.clip(FARTHEST)
            labels["depth"] = (metres[None], known)
        else:
            labels["inverse_depth"] = (inverse[None], inverse > 0)
        return make_sample(inputs, labels, key)

    def _read(self, folder: str, number: int, size: tuple[int, ...]) -> NDArray[Any]:
        """Return a label of one channel, (H, W)."""
        path = f"{self._split}/{folder}/{number}.npy"
        return read_label(self._root, path, 1, size=size)[..., 0]
