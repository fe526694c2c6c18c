"""Taskonomy as its authors publish it: a folder per building and domain, a file per view."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.dense_tasks import DEPTH, EDGES, NORMALS, segmentation
from mtlcore.datasets.photographs import Label, find_label, make_sample, read_photograph
from mtlcore.errors import UsageError
from mtlcore.loading import MissingFile, Root, check_split, open_root, unit_normals
from mtlcore.tasks import Task

CLASS_NAMES = (
    "background", "bottle", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
)  # fmt: skip
Domain = Literal["edge_occlusion", "keypoints2d", "keypoints3d", "reshading", "principal_curvature"]
_FURTHER = {
    "edge_occlusion": Task(name="edge_occlusion", kind="edges", channels=1),
    **{
        name: Task(name=name, kind="regression", channels=channels, layout="map")
        for name, channels in (
            ("keypoints2d", 1),
            ("keypoints3d", 1),
            ("reshading", 1),
            ("principal_curvature", 2),
        )
    },
}
_OF_MESH = {"edge_occlusion", "keypoints3d", "reshading", "principal_curvature"}
_METRES = np.float32(1 / 512)
_NO_DEPTH = 65_535
_SHORTEST_NORMAL = 64  # in grey levels, of 127; around (127, 127, 127) there is none
_FIELDS = ("building", "domain")


@final
class Taskonomy(Dataset):
    """Views of scanned buildings, 512x512: `point_<p>_view_<v>_domain_<domain>.png`.

    Tasks: segmentation (`segment_semantic`: 17 classes, 0 "uncertain" is invalid), depth (m; the
    16-bit files count 1/512 m, 65535 is invalid), normals (`normal`, centred at 127, scaled to
    unit length; grey is invalid; the camera frame is the files' own) and edges (`edge_texture`,
    16-bit strengths as parts of 65535). Segmentation consists of another network's predictions.

    `further` adds tasks that are called like their domains:

    edge_occlusion: 3-D edges, of the kind "edges" like those of texture.
    keypoints2d, keypoints3d: 16-bit strengths as parts of 65535; nearly all are small.
    reshading: the mesh lit from the place of the camera, 0 to 1; of three channels the first.
    principal_curvature: two channels, (p - 127) / 127 of the files' red and green; 1 is a curvature
        of 1 / 0.03 m in the authors' annotator, which cuts off what is larger.

    All but the edges are regressions with a value per pixel, learnt in standard deviations. What is
    made of the mesh is not valid in its holes. Only the depth tells where these are, so that a view
    without its depth has no such label; keypoints2d comes from the photograph.

    Buildings are split as in the authors' tables, `splits_taskonomy.zip`: put one of them, such as
    `train_val_test_tiny.csv` (25, 5 and 5 buildings), beside the buildings. Buildings that were not
    downloaded are left out; where a view has no file of a domain, the label is missing.

    Args:
        root: the folder that holds the buildings, a local path or an fsspec URL.
        split: "train", "val" or "test".
        splits: the table inside the root: a line `id,train,val,test`, then a building per line
            with a 1 under its split.
        folder: where a building's images of one domain lie inside the root; what `omnitools`
            downloads is "{domain}/taskonomy/{building}".
        depth: the distance from the camera's centre ("euclidean") or along its axis ("zbuffer").
        further: names of further domains.

    Raises:
        UsageError: there is no root or no such split, or `folder` lacks {building} or {domain}.
        DataError: the table is missing or of another form, or no building of the split is there.
    """

    splits = ("train", "val", "test")
    input_kind = "image"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        splits: str = "train_val_test_tiny.csv",
        folder: str = "{building}/{domain}",
        depth: Literal["euclidean", "zbuffer"] = "euclidean",
        further: tuple[Domain, ...] = (),
    ) -> None:
        if any(f"{{{field}}}" not in folder for field in _FIELDS):
            raise UsageError(f"data.folder: {folder!r} must hold {{building}} and {{domain}}")
        self._root = open_root("taskonomy", root, "the folder of the buildings")
        check_split("taskonomy", split, self.splits)
        self._folder = folder
        self._domains: dict[str, str] = {
            "segmentation": "segment_semantic",
            "depth": f"depth_{depth}",
            "normals": "normal",
            "edges": "edge_texture",
            **{domain: domain for domain in further},
        }
        buildings = _buildings(self._root, splits, split)
        self._views = [
            (building, view) for building in buildings for view in self._list_views(building)
        ]
        if not self._views:
            raise DataError(
                f"{self._root.where(self._path(buildings[0], 'rgb'))}: no image of this or any "
                f"other of the {len(buildings)} building(s) that {splits} counts to {split!r}; "
                "data.folder says where they lie"
            )
        self._warn_of_absent_domains()

    @classmethod
    def describe(
        cls, root: str | None, *, further: tuple[Domain, ...] = (), **settings: Any
    ) -> tuple[Task, ...]:
        """Return the tasks: segmentation, depth, normals and edges, and the further ones."""
        return (
            segmentation(CLASS_NAMES),
            DEPTH,
            NORMALS,
            EDGES,
            *(_FURTHER[domain] for domain in dict.fromkeys(further)),
        )

    def __len__(self) -> int:
        return len(self._views)

    def name_of(self, index: int) -> str | None:
        """Return the name of a view's photograph."""
        building, view = self._views[index]
        return PurePosixPath(self._path(building, "rgb", view)).stem

    def __getitem__(self, index: int) -> Sample:
        """Return one view with the labels that it has.

        Raises:
            DataError: a file is unreadable, or has another size or encoding than it should.
        """
        building, view = self._views[index]
        inputs, key = read_photograph(self._root, self._path(building, "rgb", view))
        labels = {}
        for name, domain in self._domains.items():
            decode, channels, bits = _DECODERS[name]
            path = self._path(building, domain, view)
            raw = find_label(self._root, path, channels, size=inputs.shape[1:], bits=bits)
            labels[name] = None if raw is None else decode(raw)
        for name in _OF_MESH.intersection(labels):
            labels[name] = _outside_holes(labels[name], labels["depth"])
        return make_sample(inputs, labels, key)

    def _path(self, building: str, domain: str, view: str = "") -> str:
        folder = self._folder.replace("{building}", building).replace("{domain}", domain)
        return f"{folder}/{view}_domain_{domain}.png" if view else folder

    def _list_views(self, building: str) -> list[str]:
        """`point_<p>_view_<v>` of every photograph of a building, in the order of the numbers."""
        try:
            names = self._root.list(self._path(building, "rgb"))
        except MissingFile:
            return []
        matches = [re.fullmatch(r"(point_(\d+)_view_(\d+))_domain_rgb\.png", n) for n in names]
        views = sorted((int(m[2]), int(m[3]), m[1]) for m in matches if m)
        return [view for _, _, view in views]

    def _warn_of_absent_domains(self) -> None:
        """Refuse a domain that is not there, which would look like labels that were never made."""
        buildings = sorted({building for building, _ in self._views})
        for name, domain in self._domains.items():
            if not any(self._root.exists(self._path(building, domain)) for building in buildings):
                warnings.warn(
                    f"{self._root.root}: no building of the split has a folder {domain!r}; task "
                    f"{name!r} has no label",
                    stacklevel=3,
                )


def _buildings(root: Root, table: str, split: str) -> list[str]:
    where = root.where(table)
    try:
        lines = root.read_bytes(table).decode().splitlines()
    except MissingFile as error:
        raise DataError(
            f"{error}; it says which building is in which split (data.splits): one of the tables "
            "in splits_taskonomy.zip, which Taskonomy's page of data offers"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is no text") from error
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    if not rows or not {"id", split} <= set(rows[0]):
        raise DataError(f"{where}: has no columns 'id' and {split!r}")
    name, member = rows[0].index("id"), rows[0].index(split)
    if any(len(row) != len(rows[0]) for row in rows):
        raise DataError(f"{where}: not all lines have {len(rows[0])} columns")
    buildings = [row[name] for row in rows[1:] if row[member] == "1"]
    if not buildings:
        raise DataError(f"{where}: no building has a 1 under {split!r}")
    return buildings


def _segmentation(raw: NDArray[Any]) -> Label:
    classes = raw[..., 0].astype(np.int64) - 1
    return classes, classes >= 0


def _depth(raw: NDArray[Any]) -> Label:
    # A distance of 0 is none, too: nothing lies in the camera's centre.
    known = (raw[..., 0] != _NO_DEPTH) & (raw[..., 0] > 0)
    return raw.transpose(2, 0, 1) * _METRES, known


def _normals(raw: NDArray[Any]) -> Label:
    normals: NDArray[np.float32] = raw.transpose(2, 0, 1).astype(np.float32, order="C")
    normals -= 127
    known = np.einsum("chw,chw->hw", normals, normals) > _SHORTEST_NORMAL**2
    unit_normals(normals)
    return normals, known


def _strengths(raw: NDArray[Any]) -> Label:
    return raw.transpose(2, 0, 1) / np.float32(65_535), np.ones(raw.shape[:2], dtype=np.bool_)


def _reshading(raw: NDArray[Any]) -> Label:
    grey = raw[..., :1].transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)
    return grey, np.ones(raw.shape[:2], dtype=np.bool_)


def _curvature(raw: NDArray[Any]) -> Label:
    curvatures = raw[..., :2].transpose(2, 0, 1).astype(np.float32, order="C")
    return (curvatures - 127) / np.float32(127), np.ones(raw.shape[:2], dtype=np.bool_)


def _outside_holes(label: Label | None, depth: Label | None) -> Label | None:
    if label is None or depth is None:
        return None
    return label[0], label[1] & depth[1]


# Per task how its files are decoded, their channels and the bits of a value.
_DECODERS: dict[
    str, tuple[Callable[[NDArray[Any]], Label], int | tuple[int, ...], Literal[8, 16]]
] = {
    "segmentation": (_segmentation, 1, 8),
    "depth": (_depth, 1, 16),
    "normals": (_normals, 3, 8),
    "edges": (_strengths, 1, 16),
    "edge_occlusion": (_strengths, 1, 16),
    "keypoints2d": (_strengths, 1, 16),
    "keypoints3d": (_strengths, 1, 16),
    "reshading": (_reshading, (1, 3), 8),
    "principal_curvature": (_curvature, 3, 8),
}
