"""Rendered rooms: a dense-prediction problem with exact labels and nothing on disk."""

from __future__ import annotations

from typing import Annotated, Any, final

import numpy as np
import torch
from torch import Tensor

from mtlcore.data import Dataset, Sample
from mtlcore.datasets.dense_tasks import DEPTH, EDGES, NORMALS, segmentation
from mtlcore.datasets.rendering import CLASS_NAMES, FACINGS, SHAPES, render
from mtlcore.loading import check_split, image_tensor
from mtlcore.ranges import Range, Seed, Size
from mtlcore.tasks import Task

_SCENES_PER_SPLIT = 1 << 40  # every split has its own range of scene numbers
_FURTHER = (
    Task(name="furniture", kind="saliency", channels=1),
    Task(name="outlines", kind="edges", channels=1),
    segmentation(SHAPES, "shapes"),
    segmentation(FACINGS, "facing"),
    Task(name="layout_depth", kind="depth", channels=1, unit="m"),
    Task(name="layout_normals", kind="normals", channels=3),
)


@final
class Rooms(Dataset):
    """Furnished rooms, rendered from (seed, index); every label is valid everywhere.

    Tasks: segmentation, depth (m), normals (camera frame: x right, y down, z forward, facing the
    camera) and edges. With `further`, six more are made of the same geometry: furniture (of the
    kind saliency: all that is not the room itself), outlines (edges between parts, without
    creases), shapes and facing (segmentations by the shape and the direction of the visible
    surface), depth and normals of the layout (the empty room behind the furniture).

    No scene is in two splits; with more samples, scenes are added at the end.

    Args:
        root: not used, there are no files.
        split: "train", "val" or "test".
        samples: number of rooms in the split.
        size: height and width of the images.
        seed: of the rooms.
        further: the six further tasks are there too.

    Raises:
        UsageError: there is no such split.
    """

    splits = ("train", "val", "test")
    input_kind = "image"
    renders_size = True
    unlimited = True

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        samples: Annotated[int, Range(ge=1, le=100_000_000)],
        size: Size = (64, 64),
        seed: Seed = 0,
        further: bool = False,
    ) -> None:
        check_split("rooms", split, self.splits)
        self._split = split
        self._first = self.splits.index(split) * _SCENES_PER_SPLIT
        self._indices = range(samples)
        self._size = size
        self._seed = seed
        self._further = further

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return the tasks: segmentation, depth, normals and edges, or all ten."""
        usual = (segmentation(CLASS_NAMES), DEPTH, NORMALS, EDGES)
        return (*usual, *_FURTHER) if settings.get("further") else usual

    def __len__(self) -> int:
        return len(self._indices)

    def name_of(self, index: int) -> str | None:
        """Return the number of a room."""
        return str(self._indices[index])

    def __getitem__(self, index: int) -> Sample:
        """Return one room at the size asked for."""
        index = self._indices[index]
        key = f"rooms/{self._split}/{index}"
        room = render(self._seed, self._first + index, *self._size, further=self._further)
        targets = {
            "segmentation": _classes(room.segmentation),
            "depth": _plane(room.depth),
            "normals": _vectors(room.normals),
            "edges": _plane(room.edges),
        }
        if room.further is not None:
            targets |= {
                "furniture": _plane(room.further.furniture),
                "outlines": _plane(room.further.outlines),
                "shapes": _classes(room.further.shapes),
                "facing": _classes(room.further.facing),
                "layout_depth": _plane(room.further.layout_depth),
                "layout_normals": _vectors(room.further.layout_normals),
            }
        everywhere = torch.ones(self._size, dtype=torch.bool)
        return Sample(
            inputs=image_tensor(room.image, key),
            targets=targets,
            valid=dict.fromkeys(targets, everywhere),
            key=key,
        )


def _classes(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).long()


def _plane(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()[None]


def _vectors(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()
