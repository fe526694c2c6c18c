"""KITTI's depth prediction benchmark of 2017: annotated depths and the raw drives' photographs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, final

import numpy as np

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.dense_tasks import DEPTH
from mtlcore.datasets.folder_files import read_first
from mtlcore.datasets.photographs import Label, find_label, make_sample, read_names
from mtlcore.errors import UsageError
from mtlcore.loading import MissingFile, check_split, decode_image, open_root
from mtlcore.ranges import Length
from mtlcore.tasks import Task

_PARTS = ("train", "val")  # folders of the annotated depths
_DRIVE = r"(?P<drive>\d{4}_\d\d_\d\d_drive_\d{4}_sync)"
# Both forms of published lists: the path of a photograph, or a drive, a number and a side.
_LINE = re.compile(
    rf"(\d{{4}}_\d\d_\d\d[/\s])?{_DRIVE}"
    r"(/image_0(?P<camera>[23])/data/(?P<name>\d+)\.(png|jpg)(\s.*)?|"
    r"\s+(?P<number>\d+)(\s+(?P<side>[lr]))?)"
)
_DIGITS = 10  # of a frame's number
_FORMS = ("png", "jpg")

Frame = tuple[str, int, str]  # drive, camera, number of ten digits


@final
class KITTIDepth(Dataset):
    """Photographs of drives with sparse depths of a laser scanner, about 375x1242.

    Task: depth (m). Unpack `data_depth_annotated.zip` and the raw drives ("synced+rectified data")
    into one folder:

    inputs: `<date>/<drive>/image_0<camera>/data/<frame>.png`, or .jpg.
    depth: `{train,val}/<drive>/proj_depth/groundtruth/image_0<camera>/<frame>.png`, 16 bits in
        1/256 m. 0 is invalid, most pixels are; `data.size` keeps the pixels that it falls on.

    The splits are those two folders, with the drives whose photographs are there; or those of lists
    such as Eigen's, a frame per line as it is published in two forms:

        2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png ...
        2011_09_26/2011_09_26_drive_0002_sync 69 l

    What follows the path is ignored: where the depth lies is known. A listed frame without an
    annotated depth (the first and last five of each drive have none) has no label. Sizes differ
    between days, so set `data.size`.

    Args:
        root: the folder that holds `train`, `val` and `2011_09_26`, a local path or an fsspec URL.
        split: "train" or "val"; with a list also "test".
        cameras: 2 (left), 3 (right) or both, where there is no list.
        names: a list inside the root, with {split}: "eigen_{split}.txt".

    Raises:
        UsageError: there is no such split or no root, or `names` lacks {split}.
        DataError: the split has no frame, or a line of the list is of another form.
    """

    splits = ("train", "val", "test")
    input_kind = "image"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        cameras: Annotated[tuple[Literal[2, 3], ...], Length(ge=1)] = (2,),
        names: str | None = None,
    ) -> None:
        self._root = open_root("kitti-depth", root, "the folder that holds train/ and 2011_09_26/")
        check_split("kitti-depth", split, _PARTS if names is None else self.splits)
        if names is not None and "{split}" not in names:
            raise UsageError(f"data.names: {names!r} must hold {{split}}; each split has its list")
        if not any(map(self._root.exists, _PARTS)):
            raise DataError(
                f"{self._root.root}: has neither a folder train nor val; there should be the "
                "drives of KITTI's data_depth_annotated.zip"
            )
        self._frames = (
            self._annotated(split, cameras)
            if names is None
            else self._listed(names.replace("{split}", split))
        )

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return the task: depth."""
        return (DEPTH,)

    def __len__(self) -> int:
        return len(self._frames)

    def name_of(self, index: int) -> str | None:
        """Return the number of a frame, which other drives have too."""
        return self._frames[index][2]

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph at its own size with its depth.

        Raises:
            DataError: the photograph is missing, or a file is unreadable or has another size or
                encoding than it should.
        """
        drive, camera, number = self._frames[index]
        folder = _photographs(drive, camera)
        data, path = read_first(self._root, [f"{folder}/{number}.{form}" for form in _FORMS])
        key = self._root.where(path)
        inputs = decode_image(data, key)
        labels = {"depth": self._depth(self._frames[index], inputs.shape[1:])}
        return make_sample(inputs, labels, key)

    def _depth(self, frame: Frame, size: tuple[int, ...]) -> Label | None:
        drive, camera, number = frame
        for part in _PARTS:
            path = f"{_depths(part, drive, camera)}/{number}.png"
            raw = find_label(self._root, path, 1, size=size, bits=16)
            if raw is not None:
                metres = raw.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(256)
                return metres, metres[0] > 0
        return None

    def _annotated(self, split: str, cameras: tuple[int, ...]) -> list[Frame]:
        drives = [name for name in self._root.list(split) if re.fullmatch(_DRIVE, name)]
        frames = [
            (drive, camera, number)
            for drive in drives
            for camera in cameras
            if self._root.exists(_photographs(drive, camera))
            for number in self._numbers(_depths(split, drive, camera))
        ]
        if not frames:
            example = _photographs(drives[0] if drives else "2011_09_26_drive_0001_sync", 2)
            raise DataError(
                f"{self._root.root}: of {len(drives)} drive(s) in {split}/ none has photographs in "
                f"a folder such as {example}; unpack the raw drives into data.root"
            )
        return frames

    def _numbers(self, folder: str) -> list[str]:
        try:
            files = self._root.list(folder)
        except MissingFile:  # not annotated for this camera
            return []
        return [file[:-4] for file in files if re.fullmatch(r"\d+\.png", file)]

    def _listed(self, path: str) -> list[Frame]:
        frames = []
        for number, line in enumerate(read_names(self._root, path), 1):
            match = _LINE.fullmatch(line)
            if match is None:
                raise DataError(
                    f"{self._root.where(path)}: entry {number}, {line!r}, is neither the path of a "
                    "photograph (2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069"
                    ".png) nor a drive with a number and l or r"
                )
            camera = match["camera"] or ("3" if match["side"] == "r" else "2")
            name = (match["name"] or match["number"]).zfill(_DIGITS)
            frames.append((match["drive"], int(camera), name))
        return frames


def _photographs(drive: str, camera: int) -> str:
    return f"{drive[: len('2011_09_26')]}/{drive}/image_0{camera}/data"


def _depths(part: str, drive: str, camera: int) -> str:
    return f"{part}/{drive}/proj_depth/groundtruth/image_0{camera}"
