"""NYUD_MT: NYUv2 for multi-task learning, as Vandenhende et al. published it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Literal, final

import numpy as np

from mtlcore.data import Dataset, Sample
from mtlcore.datasets.dense_tasks import DEPTH, EDGES, NORMALS, segmentation
from mtlcore.datasets.photographs import (
    Label,
    find_label,
    make_sample,
    read_names,
    read_photograph,
    resize_nearest,
)
from mtlcore.loading import check_split, open_root, unit_normals
from mtlcore.tasks import Task

CLASS_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip
_BACKGROUND = "background"

Classes = Literal[40, 41]


@final
class NYUDMT(Dataset):
    """The `NYUD_MT` archive: 795 and 654 indoor photographs, 480x640, four tasks.

    Tasks and their files, `<name>` being a line of `gt_sets/<split>.txt`, its photograph
    `images/<name>.jpg`:

    segmentation: `segmentation/<name>.png`; 0 stands for unlabelled, 1 to 40 for the classes.
    depth: `depth/<name>.npy`, (H, W) in metres; 0 is invalid.
    normals: `normals/<name>.npy`, (H, W, 3); all zero is invalid. They are scaled to unit length
        and otherwise kept as they are: the layout does not say which camera frame they are in.
    edges: `edge/<name>.npy`, (H, W); an edge is what is above one half.

    A missing file is a missing label. A label of another size than its photograph is fitted to it
    by nearest pixels, normals too, which the published loader interpolates.

    Args:
        root: the folder that holds `gt_sets` and `images`, a local path or an fsspec URL.
        split: "train" or "val", or "test" where somebody made such a list, as MTML did.
        classes: 40, unlabelled pixels being invalid, as Vandenhende et al. have it; or 41, with
            those as class 0, "background", as MTML has it.

    Raises:
        UsageError: there is no such split, or no root.
        DataError: the list of names is missing or empty.
    """

    splits = ("train", "val", "test")
    input_kind = "image"

    def __init__(self, root: str | None, split: str, *, classes: Classes = 40) -> None:
        self._root = open_root("nyud-mt", root, "the folder that holds gt_sets/")
        check_split("nyud-mt", split, self.splits)
        self._names = read_names(self._root, f"gt_sets/{split}.txt")
        self._classes = classes

    @classmethod
    def describe(
        cls, root: str | None, *, classes: Classes = 40, **settings: Any
    ) -> tuple[Task, ...]:
        """Return the tasks: segmentation, depth, normals and edges."""
        names = CLASS_NAMES if classes == 40 else (_BACKGROUND, *CLASS_NAMES)
        return (
            segmentation(names),
            DEPTH,
            NORMALS,
            EDGES,
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
        inputs, key = read_photograph(self._root, f"images/{name}.jpg")
        size = (inputs.shape[1], inputs.shape[2])
        labels = {
            "segmentation": self._segmentation(name, size),
            "depth": self._depth(name, size),
            "normals": self._normals(name, size),
            "edges": self._edges(name, size),
        }
        return make_sample(inputs, labels, key)

    def _segmentation(self, name: str, size: tuple[int, int]) -> Label | None:
        raw = find_label(self._root, f"segmentation/{name}.png", 1, bits=8)
        if raw is None:
            return None
        stored = resize_nearest(raw[..., 0], size).astype(np.int64)
        if self._classes == 41:
            return stored, np.ones(size, dtype=np.bool_)
        return stored - 1, stored != 0

    def _depth(self, name: str, size: tuple[int, int]) -> Label | None:
        raw = find_label(self._root, f"depth/{name}.npy", 1)
        if raw is None:
            return None
        depth = resize_nearest(raw[..., 0], size).astype(np.float32)
        return depth[None], depth != 0

    def _normals(self, name: str, size: tuple[int, int]) -> Label | None:
        raw = find_label(self._root, f"normals/{name}.npy", 3)
        if raw is None:
            return None
        normals = resize_nearest(raw, size).transpose(2, 0, 1).astype(np.float32, order="C")
        return normals, unit_normals(normals)

    def _edges(self, name: str, size: tuple[int, int]) -> Label | None:
        raw = find_label(self._root, f"edge/{name}.npy", 1)
        if raw is None:
            return None
        edges = resize_nearest(raw[..., 0], size) > 0.5
        return edges[None].astype(np.float32), np.ones(size, dtype=np.bool_)
