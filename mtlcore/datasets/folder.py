"""Photographs of your own: a directory per kind of label, and a `dataset.toml` that describes them.

    size = [96, 128]                      # height, width for the network; default: the images' own
    image = "{split}/rgb/{name}.{jpg,png}"  # the first of these that there is
    names = "{split}.txt"                 # one name per line; default: every image there is
    encoding = "cp1252"                   # of lists; default: UTF-8, or as their mark says

    [tasks.depth]                         # the task's name
    kind = "depth"
    file = "{split}/depth/{name}.png"     # PNG, TIFF or .npy; where there is none, no label
    scale = 0.001                         # value = raw * scale + offset, one number or one each
    offset = 0                            #   per channel
    invalid = [0, "nan"]                  # raw values of pixels without a label; of several
    unit = "m"                            #   channels [0, 0, 0], or a list of such

    [tasks.segmentation]
    kind = "segmentation"
    file = "{split}/labels/{name}.png"
    classes = ["road", "sidewalk"]        # pixels 0 and 1, unless there are
    values = {7 = "road", 8 = "sidewalk", 9 = "sidewalk"}  # or colours, "#804080" = "road"

Where all photographs lie in one folder, without `{split}`, `val = {fraction = 0.2, seed = 0}` keeps
a part of them for validation, `val = "val.txt"` those that a list names.

A segmentation has `classes`, `values` or `channels`, and only a whole `offset`. Kinds that mtlcore
does not know are float maps and need `channels`. Normals are scaled to unit length; they are
expected in the camera's frame: x right, y down, z forward, facing the camera.

A label of another resolution but the same proportions is resized to its photograph by nearest
pixels (edges that shrink: by their maximum). Where the files of a segmentation of two classes, of
edges or of saliency hold 0 and 255 alone, 255 is read as 1, and a note says so: some label files of
the training split are looked at for this when the dataset is opened.
"""

from __future__ import annotations

import json
import warnings
from pathlib import PurePosixPath
from typing import Any, final

import attrs

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.folder_description import LabelFiles, load_description
from mtlcore.datasets.folder_files import (
    listed,
    names_of_split,
    paths_of,
    photograph_paths,
    read_first,
)
from mtlcore.datasets.folder_labels import fitted, is_black_and_white, read_planes
from mtlcore.datasets.folder_values import value_map
from mtlcore.loading import MissingFile, Root, decode_image, open_root
from mtlcore.tasks import Task

# Label files that are looked at for values of 0 and 255 alone: of these sorts so many, and no more.
_WITH_WHITE, _AT_MOST = 16, 64


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
        self._names, notes = names_of_split(self._root, self._description, split)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        self._warn_of_absent_labels()
        self._warn_of_lost_labels()
        self._labels = [self._as_found(label) for label in self._description.labels]

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

    def name_of(self, index: int) -> str | None:
        """Return the name of a photograph's file; None where the description leaves it open."""
        paths = photograph_paths(self._description, self._split, self._names[index])
        stems = {PurePosixPath(path).stem for path in paths}
        return stems.pop() if len(stems) == 1 else None

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph at its own size, with the labels that it has.

        Raises:
            DataError: a file is unreadable, or a label has another size than its image.
        """
        name = self._names[index]
        paths = photograph_paths(self._description, self._split, name)
        photograph, path = read_first(self._root, paths)
        key = self._root.where(path)
        inputs = decode_image(photograph, key)
        size = (inputs.shape[1], inputs.shape[2])
        targets, valid, sources = {}, {}, {}
        for label in self._labels:
            try:
                data, path = read_first(self._root, paths_of(label.file, self._split, name))
            except MissingFile:
                continue
            where, name_of_task = self._root.where(path), label.task.name
            targets[name_of_task], valid[name_of_task] = fitted(
                label, data, where, photograph, key, size
            )
            sources[name_of_task] = where
        return Sample(inputs=inputs, targets=targets, valid=valid, key=key, sources=sources)

    def _as_found(self, label: LabelFiles) -> LabelFiles:
        """Return how a label is read, its 255 as 1 if its files hold nothing else but 0."""
        task = label.task
        two_classes = task.dtype == "int64" and task.channels == 2
        one_share = task.values == "share" and task.channels == 1
        holes = [] if label.invalid is None else label.invalid[:, 0].tolist()
        if not label.is_plain or not (two_classes or one_share) or 0.0 in holes:
            return label
        if not self._are_black_and_white(label):
            return label
        names = task.class_names
        meaning = f"class 1, {names[1]!r}" if names else "1"
        zero, one = (json.dumps(name, ensure_ascii=False) for name in names or ("", ""))
        said = f"values = {{0 = {zero}, 255 = {one}}}" if names else f"scale = {1 / 255!r}"
        declared = " although it is declared invalid, as there would be none else"
        warnings.warn(
            f"{self._root.root}: labels of task {task.name!r} hold 0 and 255 alone, and 255 is "
            f"read as {meaning}{declared if 255.0 in holes else ''} (to say so in the description: "
            f"tasks.{task.name}.{said})",
            stacklevel=3,
        )
        holes = [hole for hole in holes if hole != 255.0]
        values = value_map({0.0: 0, 255.0: 1}, holes, task.dtype, found=True)
        return attrs.evolve(label, values=values)

    def _are_black_and_white(self, label: LabelFiles) -> bool:
        # What training finds holds for every split: validation may hold no object by chance.
        try:
            split = "train"
            names, _ = names_of_split(self._root, self._description, split)
        except DataError:
            split, names = self._split, self._names
        white = 0
        for number in range(min(len(names), _AT_MOST)):
            name = names[number * len(names) // min(len(names), _AT_MOST)]
            try:
                data, path = read_first(self._root, paths_of(label.file, split, name))
                found = is_black_and_white(read_planes(label, data, self._root.where(path)))
            except DataError:  # there is none, or who reads the sample is told
                continue
            if found is False:
                return False
            white += found is True
            if white == _WITH_WHITE:
                break
        return white > 0

    def _warn_of_absent_labels(self) -> None:
        """Refuse a misspelt pattern, which would look like labels that were never made."""
        for label in self._description.labels:
            paths = (p for name in self._names for p in paths_of(label.file, self._split, name))
            if not any(map(self._root.exists, paths)):
                warnings.warn(
                    f"{self._root.root}: no image of split {self._split!r} has a label of task "
                    f"{label.task.name!r} ({label.file})",
                    stacklevel=3,
                )

    def _warn_of_lost_labels(self) -> None:
        """Refuse labels named otherwise than their images, which would count as never made."""
        image, labels, split = self._description.image, self._description.labels, self._split
        # Lists of names may leave images out, and others are in another split: theirs are not lost.
        names = listed(self._root, image, split)
        patterns = (image, *(label.file for label in labels))
        read = {path for p in patterns for name in names for path in paths_of(p, split, name)}
        for label in labels:
            if not names or ("{split}" in image and "{split}" not in label.file):
                continue  # nothing to compare with, or labels of all splits lie together
            there = [paths_of(label.file, split, name) for name in self._there(label.file)]
            lost = [paths[0] for paths in there if not read.intersection(paths)]
            if lost:
                others = f" ({len(lost)} such files)" if len(lost) > 1 else ""
                warnings.warn(
                    f"{self._root.where(lost[0])}: a label of task {label.task.name!r} without an "
                    f"image of its name{others}",
                    stacklevel=3,
                )

    def _there(self, pattern: str) -> list[str]:
        return listed(self._root, pattern, self._split)


def _open_root(root: str | None) -> Root:
    return open_root("folder", root, "the folder they lie in")
