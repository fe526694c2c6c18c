"""KITTI's semantic segmentation benchmark of 2015, as its authors publish it."""

from __future__ import annotations

from typing import Any, final

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.cityscapes import CLASS_NAMES
from mtlcore.datasets.dense_tasks import segmentation
from mtlcore.datasets.photographs import make_sample, read_label, read_names, read_photograph
from mtlcore.datasets.street_classes import StreetClasses, classes_of_ids
from mtlcore.loading import MissingFile, check_split, open_root
from mtlcore.tasks import Task

_IMAGES, _LABELS = "training/image_2", "training/semantic"
_HELD_OUT = 5  # one photograph in so many is for validation


@final
class KITTISemantics(Dataset):
    """The 200 labelled photographs of `data_semantics.zip`, about 375x1242: `data.size` needed.

    Task: segmentation by Cityscapes' classes, from `training/semantic/<name>.png` beside the
    photographs `training/image_2/<name>.png`. Sizes differ by a few pixels.

    The authors publish no split. The last fifth by name is for validation, or what a list names:
    neighbouring numbers may be views of the same street, and drawn at random these would be on
    both sides.

    Args:
        root: the folder that holds `training`, a local path or an fsspec URL.
        split: "train" or "val".
        classes: 19, or 7 for the categories.
        val: a list inside the root of the photographs to keep for validation: a name per line, with
            or without .png.

    Raises:
        UsageError: there is no such split, or no root.
        DataError: there is no labelled photograph, the list is missing or names none of them, or
            a split is left empty.
    """

    input_kind = "image"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        classes: StreetClasses = 19,
        val: str | None = None,
    ) -> None:
        self._root = open_root("kitti-semantics", root, "the folder that holds training/")
        check_split("kitti-semantics", split, self.splits)
        self._classes = classes
        names = self._labelled()
        held_out = (
            set(names[len(names) - len(names) // _HELD_OUT :])
            if val is None
            else self._named(val, names)
        )
        self._names = [name for name in names if (name in held_out) == (split == "val")]
        if not self._names:
            raise DataError(
                f"{self._root.where(_LABELS)}: of {len(names)} labelled photograph(s) none is left "
                f"for {split!r}"
            )

    @classmethod
    def describe(
        cls, root: str | None, *, classes: StreetClasses = 19, **settings: Any
    ) -> tuple[Task, ...]:
        """Return the task: segmentation."""
        return (segmentation(CLASS_NAMES[classes]),)

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
        inputs, key = read_photograph(self._root, f"{_IMAGES}/{name}.png")
        path = f"{_LABELS}/{name}.png"
        raw = read_label(self._root, path, 1, size=inputs.shape[1:], bits=8)
        label = classes_of_ids(raw[..., 0], self._classes, self._root.where(path))
        return make_sample(inputs, {"segmentation": label}, key)

    def _labelled(self) -> list[str]:
        # By the labels: other benchmarks of KITTI put their photographs into the same folder.
        try:
            files = self._root.list(_LABELS)
        except MissingFile as error:
            raise DataError(
                f"{error}; there should be the labels of KITTI's data_semantics.zip (data.root is "
                "the folder that holds training/)"
            ) from error
        return [file.removesuffix(".png") for file in files if _is_png(file)]

    def _named(self, path: str, names: list[str]) -> set[str]:
        found = {name.removesuffix(".png") for name in read_names(self._root, path)}
        unknown = sorted(found.difference(names))
        if unknown:
            raise DataError(
                f"{self._root.where(path)}: {unknown[0]!r} is none of the {len(names)} labelled "
                f"photographs of {_LABELS}"
            )
        return found


def _is_png(file: str) -> bool:
    return file.endswith(".png") and file[0] != "."
