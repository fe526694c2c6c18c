"""Labels of records, each described by a table of a dataset's settings.

Records are rows of columns, or files of one name: what reads them hands over the value that a label
is made of, a number, a text, a list or the contents of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import attrs
import torch
from torch import Tensor

from mtlcore.data import DataError
from mtlcore.datasets.folder_description import LabelFiles, parse_map
from mtlcore.datasets.folder_labels import fitted
from mtlcore.errors import ConfigError, did_you_mean, shown
from mtlcore.plugins import structure
from mtlcore.tasks import KINDS, Task

_FLAT = ("classification", "multilabel", "regression")
_YES_OR_NO = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}


@attrs.frozen(kw_only=True)
class FlatTable:
    """A task without a map, as a table of settings describes it.

    Args:
        kind: of the task.
        classes: of a classification, the texts that stand for its classes, in their order; of a
            multilabel task the names of its labels.
        channels: of a classification whose values are class numbers, how many there are; of others,
            how many numbers a value has.
        missing: values that mean that there is no label.
        unit: of a regression's values.
        standardise: whether a regression learns standard deviations from the mean of the training
            labels.
    """

    kind: Literal["classification", "multilabel", "regression"]
    classes: tuple[str, ...] = ()
    channels: int | None = None
    missing: tuple[str | int | float, ...] = ()
    unit: str = ""
    standardise: bool = True


@final
@attrs.frozen(kw_only=True)
class DescribedLabel:
    """How the label of a task is made of the value in a record.

    Args:
        task: the task.
        field: where in a record its value is.
        path: of its table in the configuration, for messages.
        missing: values that mean that there is no label.
        files: how maps are read; None: it is no map.
    """

    task: Task
    field: str
    path: str
    missing: tuple[str | int | float, ...] = ()
    files: LabelFiles | None = None

    def flat(self, value: Any, where: str) -> tuple[Tensor, Tensor] | None:
        """Return target and mask of a label that is no map; None where there is none.

        Args:
            value: a number, a text, true or false, a list of these, or None.
            where: its place, for messages.

        Raises:
            DataError: the value is none of the task.
        """
        try:
            if self._is_missing(value):
                return None
            if self.task.kind == "classification":
                return torch.tensor(self._class(value)), torch.tensor(True)
            named = self.task.kind == "multilabel" and bool(self.task.class_names)
            if named and isinstance(value, list) and all(isinstance(v, str) for v in value):
                return self._named(value)
            return self._numbers(value if isinstance(value, list) else [value])
        except ValueError as error:
            raise DataError(f"{where}: {self.task.name} label {error} ({self.path})") from error

    def map(
        self, data: bytes, where: str, photograph: bytes, key: str, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return target and mask of a map, the contents of an image or of an .npy file.

        The arguments are those of `folder_labels.fitted`.

        Raises:
            DataError: it cannot be read, or does not fit its task or photograph.
        """
        assert self.files is not None
        try:
            return fitted(self.files, data, where, photograph, key, size)
        except DataError as error:
            # What a folder says in its dataset.toml is said here by a setting.
            text = str(error).replace("in dataset.toml, tasks.", "by tasks.")
            raise DataError(text.replace(f"tasks.{self.task.name}", self.path)) from error

    def _is_missing(self, value: Any) -> bool:
        if value is None or value in ("", []):
            return True
        if isinstance(value, float) and math.isnan(value):
            return True
        return any(value == one and type(value) is type(one) for one in self.missing)

    def _class(self, value: Any) -> int:
        names = self.task.class_names
        if isinstance(value, str) and value.strip() in names:
            return names.index(value.strip())
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, int | float) and math.isfinite(value) and value == int(value):
            if 0 <= value < self.task.channels:
                return int(value)
            raise ValueError(f"{value} is out of range; there are classes 0 to "
                             f"{self.task.channels - 1}")  # fmt: skip
        known = f"one of {', '.join(names[:8])}" if names else "the number of a class"
        raise ValueError(f"is {shown(value)} and not {known}{did_you_mean(str(value), names)}")

    def _named(self, value: Sequence[str]) -> tuple[Tensor, Tensor]:
        names = self.task.class_names
        unknown = [text for text in value if text not in names]
        if unknown:
            raise ValueError(f"names {unknown[0]!r}{did_you_mean(unknown[0], names)}")
        flags = torch.tensor([float(name in value) for name in names])
        return flags, torch.ones(len(names), dtype=torch.bool)

    def _numbers(self, values: Sequence[Any]) -> tuple[Tensor, Tensor]:
        if len(values) != self.task.channels:
            raise ValueError(f"has {len(values)} value(s) where {self.task.channels} are expected")
        known = [not self._is_missing(value) for value in values]
        numbers = [self._number(v) if k else 0.0 for v, k in zip(values, known, strict=True)]
        return torch.tensor(numbers, dtype=torch.float32), torch.tensor(known)

    def _number(self, value: Any) -> float:
        if isinstance(value, str):
            text = value.strip().lower()
            flags = _YES_OR_NO if self.task.kind == "multilabel" else {}
            try:
                value = flags[text] if text in flags else float(text)
            except ValueError as error:
                raise ValueError(f"is {shown(value)} and no number") from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"is {shown(value)} and no finite number")
        return float(value)


def describe_labels(
    targets: Mapping[str, Any], field: str, own_classes: Mapping[str, Sequence[str]]
) -> tuple[DescribedLabel, ...]:
    """Return how the label of each task is read.

    Args:
        targets: task name -> its table: `kind`, where its value is, and the other keys of its kind:
            those of `FlatTable`, or of a task in a `dataset.toml`.
        field: the key of a table that says where the value is; unset: the name of the task.
        own_classes: place -> names of classes that the data itself has there.

    Raises:
        ConfigError: every problem with its path.
    """
    problems: list[str] = []
    if not targets:
        problems.append("data.targets: name at least one task")
    labels = []
    for name, table in targets.items():
        path = f"data.targets.{name}"
        if not isinstance(table, Mapping):
            problems.append(f"{path}: expected a table, got {shown(table)}")
            continue
        place = table.get(field, name)
        if not isinstance(place, str) or not place:
            problems.append(f"{path}.{field}: expected a text, got {shown(place)}")
            continue
        rest = {key: value for key, value in table.items() if key != field}
        label = _described(name, place, rest, path, own_classes.get(place, ()), problems)
        if label is not None:
            labels.append(label)
    if problems:
        raise ConfigError(problems)
    return tuple(labels)


def _described(
    name: str,
    place: str,
    table: Mapping[str, Any],
    path: str,
    own_classes: Sequence[str],
    problems: list[str],
) -> DescribedLabel | None:
    kind = table.get("kind")
    if not isinstance(kind, str) or not kind:
        problems.append(f"{path}.kind: name the kind of the task: {', '.join(KINDS)}, or your own")
        return None
    if kind not in _FLAT:
        classes = {"classes": list(own_classes)} if own_classes and kind == "segmentation" else {}
        given = {**({} if {"classes", "channels", "values"} & table.keys() else classes), **table}
        files = parse_map(name, given, path, problems)
        if files is None:
            return None
        return DescribedLabel(task=files.task, field=place, path=path, files=files)
    before = len(problems)
    settings = structure(FlatTable, table, path, problems)
    if len(problems) > before:
        return None
    flat = FlatTable(**settings)
    names = flat.classes or (() if flat.channels else tuple(own_classes))
    channels = flat.channels or len(names) or (None if kind == "classification" else 1)
    if channels is None:
        problems.append(f"{path}.classes: name the classes, or say by channels how many there are")
        return None
    try:
        task = Task(
            name=name,
            kind=kind,
            channels=channels,
            class_names=names,
            unit=flat.unit,
            standardise=kind == "regression" and flat.standardise,
        )
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None
    return DescribedLabel(task=task, field=place, path=path, missing=flat.missing)
