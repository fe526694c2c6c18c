"""Rows of a table as samples, with a task per column (or group of columns) to predict."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, Literal, final

import numpy as np
import torch

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.random_numbers import hash_uniform
from mtlcore.datasets.table_encoding import (
    Cells,
    ColumnFinder,
    RowEncoder,
    Target,
    input_columns,
    read_labels,
)
from mtlcore.datasets.tables import ColumnNames, Form, Table, open_table
from mtlcore.errors import ConfigError, UsageError, did_you_mean
from mtlcore.loading import open_root
from mtlcore.ranges import ProperFraction, Seed
from mtlcore.tasks import Task

_NAMELESS = re.compile(r"|Unnamed: \d+|__index_level_\d+__")


@final
class Tabular(Dataset):
    """A table whose rows are samples, with a task per column (or group of columns) to predict.

    An input is a vector. Columns of numbers are standardised by mean and standard deviation; a
    missing number becomes the mean, and a second value per such column is 1 where a number is
    missing. Other columns are one-hot encoded, and missing is a category of its own. What is a
    number, means, deviations and categories are taken from the training rows alone; a category that
    does not occur there is all zeros. Columns that hold labels are never inputs, whichever tasks a
    run learns; columns without a name, in which pandas and R write row numbers, are none either. A
    missing label is not valid. Spaces around a value are ignored. Classes and flags that are
    numbers may be written in any way, such as 1.0.

    The length of the vectors depends on the training rows; `input_width` returns it for a backbone
    that must be told. (`mlp` names the right number if it was told another.)

    Args:
        root: the folder the file lies in, a local path or an fsspec URL.
        split: "train" or "val"; with `{split}` in `file`, also "test".
        file: CSV, JSON lines or Parquet; `{split}` in its name stands for the split. Without
            `{split}`, training and validation share the rows of one file.
        targets: task name -> what the task predicts.
        inputs: input columns, by name or number; unset: all that hold no label.
        categorical: columns that are categories even where they look like numbers.
        ignore: columns that are no inputs.
        delimiter: what stands between the cells of a CSV file; unset: a comma, semicolon, tab or |,
            as its first lines look.
        decimal: what stands before the decimals of a number; unset: a comma where numbers have one
            and none has a point, and cells are separated otherwise.
        encoding: of a CSV file, such as "cp1252"; unset: UTF-8, or as its mark says.
        columns: where a CSV file's names come from: its first line ("header"), nowhere ("numbers":
            "0", "1", ...) or this list. Parquet has its own.
        missing: texts that stand for a missing value, beside the empty text and NaN.
        val_fraction: fraction of the rows of a shared file that is kept for validation.
        seed: of the choice of these rows.

    Raises:
        UsageError: there is no root or no such split, or pyarrow is needed and not installed.
        ConfigError: a setting names a column that does not exist or cannot be used in this way.
        DataError: the file is missing or not a table, or a value does not fit its column.
    """

    splits = ("train", "val", "test")
    input_kind = "vector"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        file: str,
        targets: dict[str, Target],
        inputs: tuple[str | int, ...] | None = None,
        categorical: tuple[str | int, ...] = (),
        ignore: tuple[str | int, ...] = (),
        columns: ColumnNames = "header",
        delimiter: str | None = None,
        decimal: Literal[".", ","] | None = None,
        encoding: str | None = None,
        missing: tuple[str, ...] = ("?",),
        val_fraction: ProperFraction = 0.2,
        seed: Seed = 0,
    ) -> None:
        files = open_root("tabular", root, "the folder they lie in")
        self._check(split, file, targets, val_fraction)
        if delimiter is not None and len(delimiter) != 1:
            raise ConfigError([f"data.delimiter: {delimiter!r} must be one character"])
        form = Form(columns=columns, delimiter=delimiter, decimal=decimal, encoding=encoding)
        train = open_table(files, file.replace("{split}", "train"), form)
        table = open_table(files, file.replace("{split}", split), form)
        cells = Cells(frozenset(missing), train.decimal)
        if table.names != train.names:
            raise DataError(f"{table.where}: has other columns than {train.where}")
        if "{split}" in file:
            train_rows, self._rows = np.arange(len(train)), np.arange(len(table))
        else:
            in_val = hash_uniform(seed, len(table)) < val_fraction
            train_rows = np.flatnonzero(~in_val)
            self._rows = train_rows if split == "train" else np.flatnonzero(in_val)
        if not len(train_rows):
            raise DataError(f"{train.where}: no row is left to train on")
        find = ColumnFinder(train)
        labels = {n: find(t.columns, f"targets.{n}.column") for n, t in targets.items()}
        ignored = find(ignore, "ignore")
        if inputs is None:
            ignored += self._row_numbers(train, [*ignored, *chain.from_iterable(labels.values())])
        used = input_columns(find, inputs, ignored, list(chain.from_iterable(labels.values())))
        encoder = RowEncoder(train, train_rows, used, find(categorical, "categorical"), cells)
        self._table = table  # keeps it for the next split
        self._width = encoder.width
        self._numbers, self._places = encoder.encode(table, self._rows)
        self._labels = {
            name: read_labels(table, self._rows, labels[name], target, cells)
            for name, target in targets.items()
        }

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return a task per entry of `targets`, in its order."""
        targets: dict[str, Target] = settings["targets"]
        tasks, problems = [], []
        for name, target in targets.items():
            try:
                tasks.append(
                    Task(
                        name=name,
                        kind=target.kind,
                        channels=len(target.classes) or len(target.columns),
                        class_names=target.classes,
                        unit=target.unit,
                        standardise=target.kind == "regression" and target.standardise,
                    )
                )
            except ValueError as error:
                problems.append(f"data.targets.{name}: {error}")
        if problems or not tasks:
            raise ConfigError(problems or ["data.targets: name at least one task"])
        return tuple(tasks)

    @classmethod
    def input_width(cls, root: str | None, **settings: Any) -> int:
        """Return the number of values in an input vector; reads the training rows."""
        return cls(root, "train", **settings)._width

    def texts_of(self, column: str | int, setting: str) -> list[str]:
        """Return the texts of a column, of this split's rows in their order.

        Args:
            column: its name or number.
            setting: that names it, for messages.

        Raises:
            ConfigError: there is no such column.
        """
        found = self._table.columns[ColumnFinder(self._table)((column,), setting)[0]]
        return [found.texts[code] for code in found.codes[self._rows]]

    def __len__(self) -> int:
        return len(self._rows)

    def name_of(self, index: int) -> str | None:
        """Return the name of the file, which all rows have: lists of labels give numbers."""
        return PurePosixPath(self._key(index)).stem

    def __getitem__(self, index: int) -> Sample:
        """Return one row; its key ends in its number in the file, from 1 and without the header."""
        numbers = self._numbers[index]
        inputs = np.zeros(self._width + 1, dtype=np.float32)  # the last is for unseen categories
        inputs[: len(numbers)] = numbers
        inputs[self._places[index]] = 1
        return Sample(
            inputs=torch.from_numpy(inputs[:-1]),
            targets={name: target[index].clone() for name, (target, _) in self._labels.items()},
            valid={name: valid[index].clone() for name, (_, valid) in self._labels.items()},
            key=self._key(index),
        )

    def _key(self, index: int) -> str:
        return f"{self._table.where}:{self._rows[index] + 1}"

    @staticmethod
    def _row_numbers(table: Table, known: Collection[int]) -> list[int]:
        """Return columns without a name, in which pandas and R write row numbers; tell of them."""
        nameless = [
            i for i, name in enumerate(table.names) if i not in known and _NAMELESS.fullmatch(name)
        ]
        for i in nameless:
            warnings.warn(
                f"{table.where}: column {i} has no name ({table.names[i]!r}), as row numbers have "
                "none that pandas and R write; it is no input (data.inputs may list it by its "
                "number, data.ignore leaves it out without this note)",
                stacklevel=3,
            )
        return nameless

    def _check(
        self, split: str, file: str, targets: Mapping[str, Target], val_fraction: float
    ) -> None:
        splits = self.splits if "{split}" in file else self.splits[:2]
        if split not in splits:
            hint = "" if "{split}" in file else " (data.file has no {split})"
            raise UsageError(
                f"tabular has no split {split!r}, only {', '.join(splits)}"
                + (did_you_mean(split, splits) or hint)
            )
        self.describe(None, targets=dict(targets))
        if not 0 < val_fraction < 1:
            raise ConfigError([f"data.val_fraction: {val_fraction} must lie between 0 and 1"])
