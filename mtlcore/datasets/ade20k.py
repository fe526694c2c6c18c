"""ADE20K's scene parsing challenge, and folders of the same layout."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.dense_tasks import segmentation
from mtlcore.datasets.photographs import Label, make_sample, read_label, read_photograph
from mtlcore.loading import MissingFile, Root, check_split, decode_text, open_root
from mtlcore.tasks import Task

_FOLDERS = {"train": "training", "val": "validation"}
_NAMES = "objectInfo150.txt"


@final
class ADE20K(Dataset):
    """`ADEChallengeData2016`: 20,210 and 2,000 photographs of many sizes, so set `data.size`.

    Task: segmentation, from `annotations/{training,validation}/<name>.png` beside the photographs
    `images/{training,validation}/<name>.jpg`: 0, "other objects", is invalid, 1 to 150 are the
    classes.

    The classes are those that a list names, so that other folders of this layout can be read with a
    list of their own: after a line of headings one class per line, with cells between tabs, of
    which the first is its number, from 1, and the last its name.

    Args:
        root: the folder that holds `images`, a local path or an fsspec URL.
        split: "train" or "val".
        names: the list of the classes inside the root.

    Raises:
        UsageError: there is no such split, or no root.
        DataError: the split has no photograph, or the list is missing or of another form.
    """

    input_kind = "image"

    def __init__(self, root: str | None, split: str, *, names: str = _NAMES) -> None:
        self._root = _open_root(root)
        check_split("ade20k", split, self.splits)
        self._list, self._classes = names, len(_class_names(self._root, names))
        self._folder = _FOLDERS[split]
        self._names = self._photographs()

    @classmethod
    def describe(
        cls, root: str | None, *, names: str = _NAMES, **settings: Any
    ) -> tuple[Task, ...]:
        """Return the task: segmentation by the classes of the list."""
        return (segmentation(_class_names(_open_root(root), names)),)

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str | None:
        """Return the name of a photograph's file."""
        return self._names[index]

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph at its own size with its classes.

        Raises:
            DataError: a file is missing or unreadable, or has another size or encoding than it
                should.
        """
        name = self._names[index]
        inputs, key = read_photograph(self._root, f"images/{self._folder}/{name}.jpg")
        return make_sample(inputs, {"segmentation": self._label(name, inputs.shape[1:])}, key)

    def _label(self, name: str, size: tuple[int, ...]) -> Label:
        path = f"annotations/{self._folder}/{name}.png"
        raw = read_label(self._root, path, 1, size=size, bits=8)
        largest = int(raw.max(initial=0))
        if largest > self._classes:
            raise DataError(
                f"{self._root.where(path)}: holds {largest}, and {self._list} names "
                f"{self._classes} classes"
            )
        classes = raw[..., 0].astype(np.int64) - 1
        return classes, classes >= 0

    def _photographs(self) -> list[str]:
        folder = f"images/{self._folder}"
        try:
            files = self._root.list(folder)
        except MissingFile as error:
            raise DataError(
                f"{error}; there should be the photographs of ADEChallengeData2016.zip (data.root "
                "is the folder that holds images/)"
            ) from error
        names = [file[:-4] for file in files if file.endswith(".jpg") and file[0] != "."]
        if not names:
            raise DataError(f"{self._root.where(folder)}: holds no photograph <name>.jpg")
        return names


def _open_root(root: str | None) -> Root:
    return open_root("ade20k", root, "the folder that holds images/")


def _class_names(root: Root, path: str) -> list[str]:
    where = root.where(path)
    try:
        text = decode_text(root.read_bytes(path), where)
    except MissingFile as error:
        raise DataError(
            f"{error}; it names the classes (data.names), and comes with ADEChallengeData2016.zip"
        ) from error
    names = []
    for number, line in enumerate(text.rstrip().splitlines()[1:], 1):
        cells = [cell.strip() for cell in line.split("\t") if cell.strip()]
        if len(cells) < 2 or cells[0] != str(number):
            raise DataError(
                f"{where}: line {number + 1}, {line!r}: the number {number}, tabs and the name of "
                "the class were expected"
            )
        names.append(cells[-1])
    if not names:
        raise DataError(f"{where}: names no class")
    return names
