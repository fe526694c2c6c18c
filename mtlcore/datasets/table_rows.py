"""The rows of a split of a table, with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import final

import numpy as np
from torch import Tensor

from mtlcore.data import DataError
from mtlcore.datasets.random_numbers import hash_uniform
from mtlcore.datasets.table_encoding import Cells, ColumnFinder, Target, read_labels
from mtlcore.datasets.tables import Form, open_table
from mtlcore.errors import ConfigError, UsageError, did_you_mean
from mtlcore.loading import open_root
from mtlcore.tasks import Task

_SPLITS = ("train", "val", "test")


@final
class TableRows:
    """The rows of a split of a table, with a label per target; inputs are made of them elsewhere.

    Args:
        dataset: That reads them, for messages.
        root: The folder the file lies in, a local path or an fsspec URL.
        split: "train" or "val"; with `{split}` in `file`, also "test".
        file: CSV, JSON lines, CoNLL or Parquet; `{split}` in its name stands for the split. Without
            `{split}`, training and validation share the rows of one file.
        targets: Task name -> what the task predicts. The labels of words are left to the dataset.
        form: How a CSV file is written.
        missing: Texts that stand for a missing value, beside the empty text and NaN.
        val_fraction: Fraction of the rows of a shared file that is kept for validation.
        seed: Of the choice of these rows.

    Attributes:
        train: The table with the training rows, and `train_rows`, their numbers there.
        table: The table with the rows of the split, and `rows`, their numbers there.
        cells: What texts of the table mean.
        find: Finds columns by name or number.
        label_columns: Numbers of the columns that hold labels.

    Raises:
        UsageError: There is no root or no such split, or pyarrow is needed and not installed.
        ConfigError: A setting names a column that does not exist or cannot be used in this way.
        DataError: The file is missing or not a table, or a value does not fit its column.
    """

    def __init__(
        self,
        dataset: str,
        root: str | None,
        split: str,
        file: str,
        targets: Mapping[str, Target],
        form: Form,
        missing: Sequence[str],
        val_fraction: float,
        seed: int,
    ) -> None:
        files = open_root(dataset, root, "the folder they lie in")
        _check(dataset, split, file, val_fraction, form)
        self.train = train = open_table(files, file.replace("{split}", "train"), form)
        self.table = table = open_table(files, file.replace("{split}", split), form)
        self.cells = Cells(frozenset(missing), train.decimal)
        if table.names != train.names:
            raise DataError(f"{table.where}: has other columns than {train.where}")
        if "{split}" in file:
            self.train_rows, self.rows = np.arange(len(train)), np.arange(len(table))
        else:
            in_val = hash_uniform(seed, len(table)) < val_fraction
            self.train_rows = np.flatnonzero(~in_val)
            self.rows = self.train_rows if split == "train" else np.flatnonzero(in_val)
        if not len(self.train_rows):
            raise DataError(f"{train.where}: no row is left to train on")
        self.find = ColumnFinder(train)
        columns = {n: self.find(t.columns, f"targets.{n}.column") for n, t in targets.items()}
        self.label_columns = [*chain.from_iterable(columns.values())]
        self._labels: dict[str, tuple[Tensor, Tensor]] = {}
        for name, target in targets.items():
            if target.kind == "tagging":
                continue
            for i in columns[name]:
                self.refuse_lists(i)
            self._labels[name] = read_labels(table, self.rows, columns[name], target, self.cells)

    def texts_of(self, column: str | int, setting: str) -> list[str]:
        """Return the texts of a column, of this split's rows in their order.

        Args:
            column: Its name or number.
            setting: That names it, for messages.

        Raises:
            ConfigError: There is no such column.
        """
        found = self.table.columns[self.find((column,), setting)[0]]
        return [found.texts[code] for code in found.codes[self.rows]]

    def targets(self, index: int) -> dict[str, Tensor]:
        """Return the labels of a row by task."""
        return {name: target[index].clone() for name, (target, _) in self._labels.items()}

    def valid(self, index: int) -> dict[str, Tensor]:
        """Return the masks of the labels of a row by task."""
        return {name: valid[index].clone() for name, (_, valid) in self._labels.items()}

    def key(self, index: int) -> str:
        """Return the file and the number of a row there, from 1 and without the header."""
        return f"{self.table.where}:{self.rows[index] + 1}"

    def refuse_lists(self, column: int) -> None:
        """Refuse a column that holds lists of words where a single value is needed.

        Raises:
            DataError: It does.
        """
        for table in (self.train, self.table):
            if table.names[column] in table.lists:
                raise DataError(
                    f"{table.where}: {table.names[column]!r} holds lists; a cell is a text, a "
                    "number, true or false"
                )


def _check(dataset: str, split: str, file: str, val_fraction: float, form: Form) -> None:
    splits = _SPLITS if "{split}" in file else _SPLITS[:2]
    if split not in splits:
        hint = "" if "{split}" in file else " (data.file has no {split})"
        raise UsageError(
            f"{dataset} has no split {split!r}, only {', '.join(splits)}"
            + (did_you_mean(split, splits) or hint)
        )
    if not 0 < val_fraction < 1:
        raise ConfigError([f"data.val_fraction: {val_fraction} must lie between 0 and 1"])
    if form.delimiter is not None and len(form.delimiter) != 1:
        raise ConfigError([f"data.delimiter: {form.delimiter!r} must be one character"])


def tasks_of(targets: Mapping[str, Target]) -> tuple[Task, ...]:
    """Return a task per target, in their order.

    Raises:
        ConfigError: There is none, or one is no task.
    """
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
