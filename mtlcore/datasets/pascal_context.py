"""PASCAL-Context for multi-task learning, as published with ASTMT and used by Vandenhende et al."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.dense_tasks import EDGES, NORMALS, segmentation
from mtlcore.datasets.matlab import need_scipy, read_variable
from mtlcore.datasets.photographs import (
    Label,
    find_label,
    make_sample,
    read_names,
    read_photograph,
    resize_nearest,
)
from mtlcore.errors import describe
from mtlcore.loading import MissingFile, check_split, open_root, unit_normals
from mtlcore.standard.edges import thin
from mtlcore.tasks import Task

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
PART_NAMES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")

_NAME = "pascal-context"
_PERSON = 15
_PARTS = {
    "head": "hair head lear lebrow leye mouth nose rear rebrow reye",
    "torso": "neck torso",
    "upper arm": "luarm ruarm",
    "lower arm": "lhand llarm rhand rlarm",
    "upper leg": "luleg ruleg",
    "lower leg": "lfoot llleg rfoot rlleg",
}
_PART_NUMBERS = {
    name: PART_NAMES.index(part) for part, names in _PARTS.items() for name in names.split()
}

# Of PASCAL-Context's 459 classes those that NYUv2 knows by the same name, and the television: the
# network that made the normals was trained on indoor scenes and says nothing about the others.
_WITH_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50,
    51, 53, 55, 56, 59, 61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104,
    105, 107, 111, 113, 115, 122, 124, 135, 141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172,
    174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215, 216, 219, 220, 223, 225, 228, 230,
    232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272, 273, 275, 281,
    283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323,
    329, 330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383,
    384, 397, 401, 403, 405, 407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432,
    440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip


@final
class PascalContext(Dataset):
    """The `PASCAL_MT` archive: 4,998 and 5,105 photographs of many sizes, five tasks.

    Tasks and their files, `<name>` being a line of `ImageSets/Context/{train,val}.txt`:

    segmentation: `semseg/VOC12/<name>.png`, else `semseg/pascal-context/<name>.png`; 21 classes,
        255 is invalid.
    human_parts: `human_parts/<name>.mat`, six parts and background.
    edges: the thinned borders of the classes in `pascal-context/trainval/<name>.mat`.
    normals: `normals_distill/<name>.png`, another network's predictions; valid on classes that this
        network can have known.
    saliency: `sal_distill/<name>.png`, another network's prediction above one half.

    A missing file is a missing label; so are the parts where nobody in the photograph has any. A
    label of another size than its photograph is fitted to it by nearest pixels, as in the published
    loader. Needs scipy for the .mat files.

    Args:
        root: the folder that holds `JPEGImages`, a local path or an fsspec URL.
        split: "train" or "val".

    Raises:
        UsageError: there is no such split or no root, or scipy is not installed.
        DataError: the list of names is missing or empty.
    """

    input_kind = "image"

    def __init__(self, root: str | None, split: str) -> None:
        need_scipy(_NAME)
        self._root = open_root(_NAME, root, "the folder that holds JPEGImages/")
        check_split(_NAME, split, self.splits)
        self._names = read_names(self._root, f"ImageSets/Context/{split}.txt")

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return the tasks: segmentation, human parts, edges, normals and saliency."""
        return (
            segmentation(CLASS_NAMES),
            segmentation(PART_NAMES, "human_parts"),
            EDGES,
            NORMALS,
            Task(name="saliency", kind="saliency", channels=1),
        )

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str | None:
        """Return the name of a sample's files."""
        return PurePosixPath(f"{self._names[index]}.jpg").stem

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph at its own size with the labels that it has.

        Raises:
            DataError: the photograph is missing, or a file is unreadable or of another layout.
        """
        name = self._names[index]
        inputs, key = read_photograph(self._root, f"JPEGImages/{name}.jpg")
        size = (inputs.shape[1], inputs.shape[2])
        classes = self._classes(name)
        labels = {
            "segmentation": self._segmentation(name, size),
            "human_parts": self._human_parts(name, size),
            "edges": None if classes is None else _edges(classes, size),
            "normals": None if classes is None else self._normals(name, classes, size),
            "saliency": self._saliency(name, size),
        }
        return make_sample(inputs, labels, key)

    def _segmentation(self, name: str, size: tuple[int, int]) -> Label | None:
        raw = self._png(f"semseg/VOC12/{name}.png", 1)
        if raw is None:
            raw = self._png(f"semseg/pascal-context/{name}.png", 1)
        if raw is None:
            return None
        classes = resize_nearest(raw[..., 0], size).astype(np.int64)
        return classes, classes != 255

    def _human_parts(self, name: str, size: tuple[int, int]) -> Label | None:
        path = f"human_parts/{name}.mat"
        anno = self._mat(path, "anno")
        if anno is None:
            return None
        try:
            parts = _parts(anno)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise DataError(
                f"{self._root.where(path)}: 'anno' is not as in PASCAL-Part: {describe(error)}"
            ) from error
        if parts is None:
            return None
        return resize_nearest(parts, size), np.ones(size, dtype=np.bool_)

    def _classes(self, name: str) -> NDArray[Any] | None:
        """(H, W) numbers of PASCAL-Context's 459 classes."""
        path = f"pascal-context/trainval/{name}.mat"
        classes = self._mat(path, "LabelMap")
        if classes is not None and (classes.ndim != 2 or classes.dtype.kind not in "iu"):
            raise DataError(
                f"{self._root.where(path)}: 'LabelMap' is {classes.dtype} of shape {classes.shape}"
            )
        return classes

    def _normals(self, name: str, classes: NDArray[Any], size: tuple[int, int]) -> Label | None:
        raw = self._png(f"normals_distill/{name}.png", 3)
        if raw is None:
            return None
        planes = resize_nearest(raw, size).transpose(2, 0, 1)
        normals: NDArray[np.float32] = planes.astype(np.float32, order="C")
        normals *= 2 / 255
        normals -= 1
        known = np.isin(resize_nearest(classes, size), _WITH_NORMALS) & unit_normals(normals)
        return normals, known

    def _saliency(self, name: str, size: tuple[int, int]) -> Label | None:
        raw = self._png(f"sal_distill/{name}.png", 1)
        if raw is None:
            return None
        salient = resize_nearest(raw[..., 0], size) > 127
        return salient[None].astype(np.float32), np.ones(size, dtype=np.bool_)

    def _png(self, path: str, channels: int) -> NDArray[Any] | None:
        """(H, W, channels) values of 8 bits; None where there is no such file."""
        return find_label(self._root, path, channels, bits=8)

    def _mat(self, path: str, variable: str) -> NDArray[Any] | None:
        """Return a variable of a MATLAB file; None where there is no such file."""
        try:
            return read_variable(self._root, path, variable, _NAME)
        except MissingFile:
            return None


def _parts(anno: NDArray[Any]) -> NDArray[np.int64] | None:
    """(H, W) part numbers of all persons in PASCAL-Part's structure; None where there are none.

    It holds a file name and objects; an object its class, that class's number, its mask and its
    parts; a part its name and mask.
    """
    _, objects = anno.item()
    numbers: NDArray[np.int64] | None = None
    for _, number, mask, parts in np.atleast_1d(objects):
        if number != _PERSON or not np.size(parts):
            continue
        if numbers is None:
            numbers = np.zeros(mask.shape, dtype=np.int64)
        for name, part in np.atleast_1d(parts):
            numbers[part.astype(np.bool_)] = _PART_NUMBERS[str(name)]
    return numbers


def _edges(classes: NDArray[Any], size: tuple[int, int]) -> Label:
    """Where the Laplacian of the class numbers is not 0, thinned."""
    padded = np.pad(classes.astype(np.int64), 1, mode="reflect")
    across = padded[1:-1, :-2] + padded[1:-1, 2:]
    down = padded[:-2, 1:-1] + padded[2:, 1:-1]
    borders = thin(across + down != 4 * padded[1:-1, 1:-1])
    return resize_nearest(borders, size)[None].astype(np.float32), np.ones(size, dtype=np.bool_)
