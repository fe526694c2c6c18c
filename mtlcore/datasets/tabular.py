"""Rows of a table as samples, with a task per column (or group of columns) to predict."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any, Literal, final

import numpy as np
import torch

from mtlcore.data import Dataset, Sample
from mtlcore.datasets.table_encoding import RowEncoder, Target, input_columns
from mtlcore.datasets.table_rows import TableRows, tasks_of
from mtlcore.datasets.tables import ColumnNames, Form, Table
from mtlcore.errors import ConfigError
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
        self.describe(None, targets=dict(targets))
        form = Form(columns=columns, delimiter=delimiter, decimal=decimal, encoding=encoding)
        self._rows = rows = TableRows(
            "tabular", root, split, file, targets, form, missing, val_fraction, seed
        )
        train, find = rows.train, rows.find
        ignored, labels = find(ignore, "ignore"), rows.label_columns
        if inputs is None:
            ignored += self._row_numbers(train, [*ignored, *labels])
        used = input_columns(find, inputs, ignored, labels)
        for i in used:
            rows.refuse_lists(i)
        encoder = RowEncoder(
            train, rows.train_rows, used, find(categorical, "categorical"), rows.cells
        )
        self._width = encoder.width
        self._numbers, self._places = encoder.encode(rows.table, rows.rows)

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return a task per entry of `targets`, in its order."""
        targets: dict[str, Target] = settings["targets"]
        if tagged := [name for name, target in targets.items() if target.kind == "tagging"]:
            raise ConfigError(
                [
                    f"data.targets.{name}: tagging labels the words of texts, and the dataset "
                    "tabular has rows of numbers; datasets of texts read both (mtl list datasets)"
                    for name in tagged
                ]
            )
        return tasks_of(targets)

    @classmethod
    def input_width(cls, root: str | None, **settings: Any) -> int:
        """Return the number of values in an input vector; reads the training rows."""
        return cls(root, "train", **settings)._width

    def __len__(self) -> int:
        return len(self._rows.rows)

    def name_of(self, index: int) -> str | None:
        """Return the name of the file, which all rows have: lists of labels give numbers."""
        return PurePosixPath(self._rows.key(index)).stem

    def __getitem__(self, index: int) -> Sample:
        """Return one row; its key ends in its number in the file, from 1 and without the header."""
        numbers = self._numbers[index]
        inputs = np.zeros(self._width + 1, dtype=np.float32)  # the last is for unseen categories
        inputs[: len(numbers)] = numbers
        inputs[self._places[index]] = 1
        return Sample(
            inputs=torch.from_numpy(inputs[:-1]),
            targets=self._rows.targets(index),
            valid=self._rows.valid(index),
            key=self._rows.key(index),
        )

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
