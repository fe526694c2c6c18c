"""Photographs whose labels are the rows of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, final

import attrs
import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.photographs import read_photograph
from mtlcore.datasets.random_numbers import kept_names
from mtlcore.datasets.table_encoding import Cells, ColumnFinder, Target, read_labels
from mtlcore.datasets.tables import ColumnNames, Form, Table, open_table
from mtlcore.datasets.tabular import Tabular
from mtlcore.errors import ConfigError
from mtlcore.loading import MissingFile, check_split, open_root
from mtlcore.ranges import Natural, ProperFraction, Seed
from mtlcore.tasks import Task

_FIELD = re.compile(r"\{([^{}]*)\}")
#: What a column of parts holds where `parts` does not say it.
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@final
class ImageTable(Dataset):
    """Photographs whose labels are the rows of a table: attributes with holes, classes, numbers.

    A row is a sample, and a label that its cell does not have is not valid. How the table is read,
    and what a target may be, is as with the dataset `tabular`; columns that are neither labels nor
    part of a file's name are left out.

    Args:
        root: the folder with the table and the photographs, a local path or an fsspec URL.
        split: "train", "val" or "test".
        file: the table, CSV, JSON lines or Parquet; `{split}` in its name stands for the split.
        image: where a row's photograph lies, such as "photographs/{file_name}" or
            "{split}/{id}.jpg", with columns by name (or number) and the split in braces.
        targets: task name -> what the task predicts.
        part: the column that says which split a row belongs to, by name or number; unset: a part
            of the rows of a table without `{split}` is kept for validation.
        parts: split -> the texts that stand for it in that column; unset: the split's name and what
            is usual ("valid", "validation" and "dev" are "val"). Rows with other texts are in none.
        columns: where a CSV file's names come from: its first line ("header"), nowhere ("numbers":
            "0", "1", ...) or this list.
        delimiter: what stands between the cells of a CSV file; unset: as its first lines look.
        decimal: what stands before the decimals of a number; unset: as the file looks.
        encoding: of a CSV file; unset: UTF-8, or as its mark says.
        missing: texts that stand for a missing label, beside the empty text and NaN.
        val_fraction: fraction of the photographs that is kept for validation, chosen by their
            names: rows of one photograph stay together, and one that is added moves few others.
        seed: of that choice.

    Raises:
        UsageError: there is no root or no such split.
        ConfigError: a setting names a column that does not exist or cannot be used in this way.
        DataError: the table is missing or none, a value does not fit its column, or no row is in
            the split.
    """

    splits = ("train", "val", "test")
    input_kind = "image"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        file: str,
        image: str,
        targets: dict[str, Target],
        part: str | Natural | None = None,
        parts: dict[str, tuple[str, ...]] | None = None,
        columns: ColumnNames = "header",
        delimiter: str | None = None,
        decimal: Literal[".", ","] | None = None,
        encoding: str | None = None,
        missing: tuple[str, ...] = ("?",),
        val_fraction: ProperFraction = 0.2,
        seed: Seed = 0,
    ) -> None:
        self._root = open_root("images-csv", root, "the folder with the table")
        self.describe(None, targets=dict(targets))
        _check(file, image, part, parts, delimiter)
        several = "{split}" in file or part is not None
        check_split("images-csv", split, self.splits if several else self.splits[:2])
        form = Form(columns=columns, delimiter=delimiter, decimal=decimal, encoding=encoding)
        table = open_table(self._root, file.replace("{split}", split), form)
        find, cells = ColumnFinder(table), Cells(frozenset(missing), table.decimal)
        labels = {n: find(t.columns, f"targets.{n}.column") for n, t in targets.items()}
        names = _file_names(table, image, split)
        if part is not None:
            column = table.columns[find((part,), "part")[0]]
            texts = [column.texts[code] for code in column.codes]
            self._rows = _rows_of_part(table, texts, {**_PARTS, **(parts or {})}[split], split)
        elif "{split}" in file:
            self._rows = np.arange(len(table))
        else:
            kept = kept_names(names, val_fraction, seed)
            self._rows = np.flatnonzero([(name in kept) == (split == "val") for name in names])
        if not len(self._rows):
            raise DataError(
                f"{table.where}: no row of {len(table)} is left for the split {split!r} "
                "(data.val_fraction)"
            )
        self._where = table.where
        self._names = [names[row] for row in self._rows.tolist()]
        self._labels = {
            name: read_labels(table, self._rows, labels[name], target, cells)
            for name, target in targets.items()
        }

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return a task per entry of `targets`, in its order; several attributes have names."""
        targets: Mapping[str, Target] = settings["targets"]
        tasks = []
        for task in Tabular.describe(root, targets=dict(targets)):
            columns = targets[task.name].columns
            named = task.kind == "multilabel" and len(columns) > 1
            tasks.append(
                attrs.evolve(task, class_names=tuple(map(str, columns))) if named else task
            )
        return tuple(tasks)

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, index: int) -> str | None:
        """Return the name of a photograph's file."""
        return PurePosixPath(self._names[index]).stem

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph with its labels.

        Raises:
            DataError: the photograph is missing or unreadable; the message names its row.
        """
        row = int(self._rows[index]) + 1
        try:
            inputs, key = read_photograph(self._root, self._names[index])
        except MissingFile as error:
            raise DataError(f"{error}; row {row} of {self._where} names it") from error
        return Sample(
            inputs=inputs,
            targets={name: target[index].clone() for name, (target, _) in self._labels.items()},
            valid={name: valid[index].clone() for name, (_, valid) in self._labels.items()},
            key=key,
        )


def _check(
    file: str,
    image: str,
    part: str | int | None,
    parts: Mapping[str, Sequence[str]] | None,
    delimiter: str | None,
) -> None:
    problems = []
    if delimiter is not None and len(delimiter) != 1:
        problems.append(f"data.delimiter: {delimiter!r} must be one character")
    if not {*_FIELD.findall(image)} - {"split"}:
        problems.append(
            f"data.image: {image!r} names no column of the table in braces, such as "
            '"photographs/{file_name}"'
        )
    if part is not None and "{split}" in file:
        problems.append("data.part: the files of {split} part the rows already; leave it out")
    if parts is not None and part is None:
        problems.append("data.parts: says what data.part holds, and that names no column")
    unknown = sorted({*(parts or {})} - {*_PARTS})
    problems += [f"data.parts.{name}: no such split ({', '.join(_PARTS)})" for name in unknown]
    if problems:
        raise ConfigError(problems)


def _file_names(table: Table, image: str, split: str) -> list[str]:
    """Return the path of each row's photograph.

    Raises:
        ConfigError: the pattern names what is no column.
        DataError: a row does not name its file.
    """
    pieces = _FIELD.split(image)
    find = ColumnFinder(table)
    texts: dict[str, list[str]] = {}
    for field in dict.fromkeys(pieces[1::2]):
        if field == "split":
            texts[field] = [split] * len(table)
            continue
        by_number = field.isdecimal() and field not in table.names
        column = table.columns[find((int(field) if by_number else field,), "image")[0]]
        texts[field] = [column.texts[code] for code in column.codes]
        if "" in texts[field]:
            raise DataError(
                f"{table.where}: row {texts[field].index('') + 1}: column {field!r} names no file"
            )
    parts = [
        texts[piece] if number % 2 else [piece] * len(table) for number, piece in enumerate(pieces)
    ]
    return ["".join(row) for row in zip(*parts, strict=True)]


def _rows_of_part(
    table: Table, texts: Sequence[str], wanted: Sequence[str], split: str
) -> NDArray[np.int64]:
    rows = np.flatnonzero([text in wanted for text in texts])
    if not len(rows):
        there = ", ".join(map(repr, list(dict.fromkeys(texts))[:8]))
        raise DataError(
            f"{table.where}: no row is of the split {split!r}: data.part holds {there}, and "
            f"{', '.join(map(repr, wanted))} would be (data.parts.{split} says others)"
        )
    return rows
