"""Photographs of your own: a directory per kind of label, and a `dataset.toml` that describes them.

    size = [96, 128]                      # height, width for the network; default: the images' own
    image = "{split}/rgb/{name}.png"      # 8-bit PNG, JPEG or .npy
    names = "{split}.txt"                 # one name per line; default: every image there is

    [tasks.depth]                         # the task's name
    kind = "depth"
    file = "{split}/depth/{name}.png"     # 8 or 16-bit PNG, or .npy; where there is none, no label
    scale = 0.001                         # value = raw * scale + offset, one number or one each
    offset = 0                            #   per channel
    invalid = 0                           # raw value of pixels without a label, or one per channel
    unit = "m"

A segmentation has `classes = ["name", ...]` or `channels`, and only a whole `offset`. Kinds that
mtlcore does not know are float maps and need `channels`. Normals are scaled to unit length; they
are expected in the camera's frame: x right, y down, z forward, facing the camera.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.folder_description import Description, LabelFiles, load_description
from mtlcore.loading import MissingFile, Root, decode_image, decode_label, open_root, unit_normals
from mtlcore.tasks import Task


@final
class Folder(Dataset):
    """Photographs with dense labels, described by a small TOML file.

    Args:
        root: the folder with the files, a local path or an fsspec URL.
        split: what `{split}` stands for in the patterns, usually "train" or "val".
        spec: the description: a path inside the root; if there is no such file, a path relative to
            the working directory; an absolute path; or a URL.

    Raises:
        UsageError: there is no root.
        ConfigError: the description is missing or wrong; every problem with its file and key.
        DataError: the split has no images.
    """

    input_kind = "image"

    def __init__(self, root: str | None, split: str, *, spec: str = "dataset.toml") -> None:
        self._root = _open_root(root)
        self._split = split
        self._description = load_description(self._root, spec)
        self._names = _list_names(self._root, self._description, split)
        self._warn_of_absent_labels()
        self._warn_of_lost_labels()

    @classmethod
    def describe(
        cls, root: str | None, *, spec: str = "dataset.toml", **settings: Any
    ) -> tuple[Task, ...]:
        """Return the tasks of the description, in its order."""
        return tuple(label.task for label in load_description(_open_root(root), spec).labels)

    @classmethod
    def default_size(
        cls, root: str | None, *, spec: str = "dataset.toml", **settings: Any
    ) -> tuple[int, int] | None:
        """Return the height and width in the description; None: the images' own."""
        return load_description(_open_root(root), spec).size

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph at its own size, with the labels that it has.

        Raises:
            DataError: a file is unreadable, or a label has another size than its image.
        """
        path = self._path(self._description.image, self._names[index])
        key = self._root.where(path)
        inputs = decode_image(self._root.read_bytes(path), key)
        targets, valid, sources = {}, {}, {}
        for label in self._description.labels:
            path = self._path(label.file, self._names[index])
            try:
                data = self._root.read_bytes(path)
            except MissingFile:
                continue
            where = self._root.where(path)
            planes = _planes(label.task, decode_label(data, where), where)
            if planes.shape[1:] != inputs.shape[1:]:
                raise DataError(
                    f"{where}: the label is {_by(planes.shape)} but its image {key} is "
                    f"{_by(inputs.shape)} (height x width)"
                )
            targets[label.task.name], valid[label.task.name] = _decode(label, planes)
            sources[label.task.name] = where
        return Sample(inputs=inputs, targets=targets, valid=valid, key=key, sources=sources)

    def _path(self, pattern: str, name: str) -> str:
        return _fill(pattern, self._split).replace("{name}", name)

    def _warn_of_absent_labels(self) -> None:
        """Refuse a misspelt pattern, which would look like labels that were never made."""
        for label in self._description.labels:
            paths = (self._path(label.file, name) for name in self._names)
            if not any(map(self._root.exists, paths)):
                warnings.warn(
                    f"{self._root.root}: no image of split {self._split!r} has a label of task "
                    f"{label.task.name!r} ({label.file})",
                    stacklevel=3,
                )

    def _warn_of_lost_labels(self) -> None:
        """Refuse labels named otherwise than their images, which would count as never made."""
        image, labels = self._description.image, self._description.labels
        # A list of names may leave images out, whose labels are not lost.
        names = self._names if self._description.names is None else self._listed(image)
        read = {self._path(p, name) for p in (image, *(x.file for x in labels)) for name in names}
        for label in labels:
            if not names or ("{split}" in image and "{split}" not in label.file):
                continue  # nothing to compare with, or labels of all splits lie together
            files = [self._path(label.file, name) for name in self._listed(label.file)]
            lost = [file for file in files if file not in read]
            if lost:
                others = f" ({len(lost)} such files)" if len(lost) > 1 else ""
                warnings.warn(
                    f"{self._root.where(lost[0])}: a label of task {label.task.name!r} without an "
                    f"image of its name{others}",
                    stacklevel=3,
                )

    def _listed(self, pattern: str) -> list[str]:
        try:
            return _names_in(self._root, _fill(pattern, self._split))
        except DataError:  # files can be read from places that cannot be listed
            return []


def _open_root(root: str | None) -> Root:
    return open_root("folder", root, "the folder they lie in")


def _list_names(root: Root, spec: Description, split: str) -> list[str]:
    if spec.names is not None:
        lines = root.read_bytes(_fill(spec.names, split)).decode().splitlines()
        names = [line.strip() for line in lines if line.strip()]
    else:
        names = _names_in(root, _fill(spec.image, split))
    if not names:
        raise DataError(f"{root.where(_fill(spec.names or spec.image, split))}: no images found")
    return names


def _names_in(root: Root, pattern: str) -> list[str]:
    """Return what stands for `{name}` in a pattern, by the entries of the directory it is in."""
    before, _, after = pattern.partition("{name}")
    directory, _, prefix = before.rpartition("/")
    suffix = after.partition("/")[0]
    entry = re.compile(re.escape(prefix) + "(.+)" + re.escape(suffix))
    matches = map(entry.fullmatch, root.list(directory))
    # Hidden files are no images: archives made on a Mac hold a "._x.png" beside every "x.png".
    return [match[1] for match in matches if match and not match[0].startswith(".")]


def _fill(pattern: str, split: str) -> str:
    return pattern.replace("{split}", split)


def _by(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]}"


def _planes(task: Task, raw: NDArray[Any], where: str) -> NDArray[Any]:
    """Return a label's raw values as a view (C, H, W); C is 1 if the target holds class numbers."""
    planes = raw[None] if raw.ndim == 2 else raw.transpose(2, 0, 1)
    expected = 1 if task.dtype == "int64" else task.channels
    if planes.shape[0] != expected:
        raise DataError(
            f"{where}: has {planes.shape[0]} channel(s) where task {task.name!r} needs {expected}"
        )
    return planes


def _decode(label: LabelFiles, planes: NDArray[Any]) -> tuple[Tensor, Tensor]:
    valid = _known(label.invalid, planes)
    if label.task.dtype == "int64":
        classes = planes[0].astype(np.int64) + int(label.offset[0, 0, 0])
        return torch.from_numpy(classes), torch.from_numpy(valid)
    values = np.multiply(planes, label.scale, dtype=np.float32, order="C")
    values += label.offset
    if label.task.kind == "normals":
        valid &= unit_normals(values)
    return torch.from_numpy(values), torch.from_numpy(valid)


def _known(invalid: NDArray[np.float64] | None, planes: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W): a pixel has no label where every channel holds its invalid value."""
    if invalid is None:
        return np.ones(planes.shape[1:], dtype=np.bool_)
    known = np.zeros(planes.shape[1:], dtype=np.bool_)
    for plane, value in zip(planes, invalid[:, 0, 0].tolist(), strict=True):
        known |= ~np.isnan(plane) if np.isnan(value) else plane != value
    return known
