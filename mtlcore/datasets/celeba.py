"""CelebA: faces with forty attributes, as its authors publish it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.photographs import read_photograph
from mtlcore.loading import Root, check_split, decode_text, open_root
from mtlcore.tasks import Task

ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs",
    "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows",
    "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones",
    "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin",
    "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)  # fmt: skip
# Names of tasks begin with a letter.
TASK_NAMES = tuple(name.lower().replace("5_o_", "five_o_") for name in ATTRIBUTES)
_TOGETHER = "attributes"

_IMAGES, _LABELS, _PARTS = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
# Where the authors' download has them.
_FOLDERS = {_IMAGES: "Img", _LABELS: "Anno", _PARTS: "Eval"}


@final
class CelebA(Dataset):
    """202,599 aligned faces, 218x178: `img_align_celeba/<number>.jpg`.

    Tasks: each of the 40 attributes of `list_attr_celeba.txt` is one, a yes or no of the kind
    "multilabel" with a single label; its name is the attribute's in small letters (`five_o_...` for
    `5_o_Clock_Shadow`). Splits are those of `list_eval_partition.txt`: 162,770, 19,867 and 19,962
    faces. The two lists and the folder lie in the root, or in its folders `Anno`, `Eval` and `Img`
    as in the authors' download; lists of the same name as CSV (`list_attr_celeba.csv`), as Kaggle
    has them, do as well.

    The landmarks have no task: places in the picture would have to move with it where
    `data.augment` flips or crops it.

    Args:
        root: a local path or an fsspec URL.
        split: "train", "val" or "test".
        together: one task "attributes" with 40 labels instead of 40 tasks.

    Raises:
        UsageError: there is no such split, or no root.
        DataError: a list is missing or of another form; the message names the line.
    """

    splits = ("train", "val", "test")
    input_kind = "image"

    def __init__(self, root: str | None, split: str, *, together: bool = False) -> None:
        self._root = open_root("celeba", root, f"the folder that holds {_IMAGES}/")
        check_split("celeba", split, self.splits)
        images = _find(self._root, _IMAGES)
        inner = f"{images}/{_IMAGES}"  # Kaggle's archive has a folder in the folder
        self._images = inner if self._root.exists(inner) else images
        part = str(self.splits.index(split))
        self._names, self._labels = _read_labels(self._root, _read_parts(self._root), part)
        if not self._names:
            raise DataError(
                f"{self._root.where(_find(self._root, _PARTS))}: no face has a {part} ({split!r})"
            )
        self._together = together

    @classmethod
    def describe(
        cls, root: str | None, *, together: bool = False, **settings: Any
    ) -> tuple[Task, ...]:
        """Return the tasks: one per attribute, or one with all of them."""
        if together:
            count = len(TASK_NAMES)
            return (
                Task(name=_TOGETHER, kind="multilabel", channels=count, class_names=TASK_NAMES),
            )
        return tuple(Task(name=name, kind="multilabel", channels=1) for name in TASK_NAMES)

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str | None:
        """Return the number of a face."""
        return PurePosixPath(self._names[index]).stem

    def __getitem__(self, index: int) -> Sample:
        """Return one face with its attributes.

        Raises:
            DataError: the photograph is missing or unreadable.
        """
        inputs, key = read_photograph(self._root, f"{self._images}/{self._names[index]}")
        labels = torch.from_numpy(self._labels[index].astype(np.float32))
        targets = (
            {_TOGETHER: labels}
            if self._together
            else {name: labels[i : i + 1] for i, name in enumerate(TASK_NAMES)}
        )
        valid = {name: torch.ones(len(t), dtype=torch.bool) for name, t in targets.items()}
        return Sample(inputs=inputs, targets=targets, valid=valid, key=key)


def _find(root: Root, name: str) -> str:
    """Return where a list or the folder of the faces lies."""
    nested = f"{_FOLDERS[name]}/{name}"
    as_csv = [name.replace(".txt", ".csv")] if name.endswith(".txt") else []
    found = next((path for path in (name, nested, *as_csv) if root.exists(path)), None)
    if found is None:
        raise DataError(f"{root.where(name)}: no such file or directory, nor {root.where(nested)}")
    return found


def _lines(root: Root, name: str) -> tuple[str, list[str]]:
    """Return the place of a list and its lines, without empty ones at the end."""
    path = _find(root, name)
    where = root.where(path)
    lines = decode_text(root.read_bytes(path), where).rstrip().splitlines()
    if not path.endswith(".csv"):
        return where, lines
    return where, [line.replace(",", " ") for line in lines]


def _read_parts(root: Root) -> dict[str, str]:
    """Return file name -> 0, 1 or 2."""
    where, lines = _lines(root, _PARTS)
    parts: dict[str, str] = {}
    head = where.endswith(".csv")
    for number, line in enumerate(lines[head:], 1 + head):
        match line.split():
            case [name, ("0" | "1" | "2") as part]:
                parts[name] = part
            case _:
                raise DataError(
                    f"{where}: line {number}, {line!r}: a file's name and 0, 1 or 2 were expected"
                )
    return parts


def _read_labels(
    root: Root, parts: dict[str, str], part: str
) -> tuple[list[str], NDArray[np.bool_]]:
    """Return the names of the faces of a part, and their attributes (N, 40)."""
    where, lines = _lines(root, _LABELS)
    is_csv = where.endswith(".csv")
    if is_csv and lines:  # no number of faces, and a name for their column
        lines = [str(len(lines) - 1), *lines]
        lines[1] = lines[1].partition(" ")[2]
    if len(lines) < 2 or tuple(lines[1].split()) != ATTRIBUTES:
        raise DataError(
            f"{where}: line {1 if is_csv else 2} should name CelebA's {len(ATTRIBUTES)} "
            f"attributes, from {ATTRIBUTES[0]} to {ATTRIBUTES[-1]}"
        )
    if lines[0].strip() != str(len(lines) - 2):
        raise DataError(
            f"{where}: line 1 says {lines[0].strip()!r} faces, and {len(lines) - 2} follow; is it "
            "the whole file?"
        )
    names, labels = [], []
    for number, line in enumerate(lines[2:], 2 if is_csv else 3):
        name, *values = line.split() or [""]
        if len(values) != len(ATTRIBUTES) or not {"1", "-1"}.issuperset(values):
            raise DataError(
                f"{where}: line {number}, {line[:60]!r}: a file's name and {len(ATTRIBUTES)} times "
                "1 or -1 were expected"
            )
        if name not in parts:
            raise DataError(f"{where}: line {number}: {_PARTS} does not say the part of {name!r}")
        if parts[name] == part:
            names.append(name)
            labels.append([value == "1" for value in values])
    return names, np.array(labels, dtype=np.bool_)
