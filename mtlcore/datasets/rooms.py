"""Rendered rooms: a dense-prediction problem with exact labels and nothing on disk."""

from __future__ import annotations

from typing import Annotated, Any, final

import torch

from mtlcore.data import Dataset, Sample
from mtlcore.datasets.dense_tasks import DEPTH, EDGES, NORMALS, segmentation
from mtlcore.datasets.rendering import CLASS_NAMES, render
from mtlcore.loading import check_split, image_tensor
from mtlcore.ranges import Range, Seed, Size
from mtlcore.tasks import Task

_SCENES_PER_SPLIT = 1 << 40  # every split has its own range of scene numbers


@final
class Rooms(Dataset):
    """Furnished rooms, rendered from (seed, index); every label is valid everywhere.

    Tasks: segmentation, depth (m), normals (camera frame: x right, y down, z forward, facing the
    camera) and edges. No scene is in two splits; with more samples, scenes are added at the
    end.

    Args:
        root: not used, there are no files.
        split: "train", "val" or "test".
        samples: number of rooms in the split.
        size: height and width of the images.
        seed: of the rooms.

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
    ) -> None:
        check_split("rooms", split, self.splits)
        self._split = split
        self._first = self.splits.index(split) * _SCENES_PER_SPLIT
        self._indices = range(samples)
        self._size = size
        self._seed = seed

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return the tasks: segmentation, depth, normals and edges."""
        return (
            segmentation(CLASS_NAMES),
            DEPTH,
            NORMALS,
            EDGES,
        )

    def __len__(self) -> int:
        return len(self._indices)

    def name_of(self, index: int) -> str | None:
        """Return the number of a room."""
        return str(self._indices[index])

    def __getitem__(self, index: int) -> Sample:
        """Return one room at the size asked for."""
        index = self._indices[index]
        key = f"rooms/{self._split}/{index}"
        room = render(self._seed, self._first + index, *self._size)
        targets = {
            "segmentation": torch.from_numpy(room.segmentation).long(),
            "depth": torch.from_numpy(room.depth)[None],
            "normals": torch.from_numpy(room.normals).permute(2, 0, 1).contiguous(),
            "edges": torch.from_numpy(room.edges).float()[None],
        }
        everywhere = torch.ones(self._size, dtype=torch.bool)
        return Sample(
            inputs=image_tensor(room.image, key),
            targets=targets,
            valid=dict.fromkeys(targets, everywhere),
            key=key,
        )
