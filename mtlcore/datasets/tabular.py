"""Rows of a table: CSV (plain or .gz) or Parquet, several columns of which are to be predicted."""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib
import io
import itertools
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, final
from weakref import WeakValueDictionary

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.scenes import hash_uniform
from mtlcore.errors import ConfigError, UsageError, describe, did_you_mean
from mtlcore.loading import Root
from mtlcore.tasks import Task

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_ROWS_AT_ONCE = 500  # few enough that their texts stay in the processor's cache: twice as fast
_YES_OR_NO = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}

Columns = Literal["header", "numbers"] | tuple[str, ...]


@attrs.frozen(kw_only=True)
class Target:
    """What one task is to predict of a row.

    Args:
        kind: of task.
        column: its column's name or number (from 0); several for the values of a regression or the
            labels (0 and 1, false and true) of a multilabel task.
        classes: the texts that stand for the classes of a classification, in their order.
        otherwise: the class of every text that is none of them; by default such a text is refused.
        unit: of a regression's values.
    """

    kind: Literal["classification", "regression", "multilabel"]
    column: str | int | tuple[str | int, ...]
    classes: tuple[str, ...] = ()
    otherwise: str | None = None
    unit: str = ""

    def __attrs_post_init__(self) -> None:
        if not self.columns:
            raise ValueError("column: names none")
        if self.kind != "classification":
            if self.classes or self.otherwise is not None:
                raise ValueError("classes and otherwise are for a classification only")
        elif len(self.columns) != 1:
            raise ValueError("column: a classification has one column")
        elif len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError("classes: give two or more different ones")
        elif self.otherwise is not None and self.otherwise not in self.classes:
            raise ValueError(f"otherwise: {self.otherwise!r} is none of the classes")

    @property
    def columns(self) -> tuple[str | int, ...]:
        """`column` as a tuple."""
        return self.column if isinstance(self.column, tuple) else (self.column,)


@final
class Tabular(Dataset):
    """A table whose rows are samples, with a task per column (or group of columns) to predict.

    Inputs are vectors: numbers standardised by mean and deviation; for each column of numbers with
    missing ones, which become the mean, a 1 where a number is missing; and a place per category
    (one-hot), a missing one being a category of its own. What is a number, the means, deviations
    and categories are taken from the training rows alone; a category not seen there is all zeros.
    Columns that hold a label are no inputs, whichever of them a run learns. A missing label is not
    valid. Spaces around a value do not count.

    The length of the vectors depends on the training rows; a backbone that must be told is told
    what `input_width` gives. (With another number `mlp` says what a sample has.)

    Args:
        root: the folder the file lies in, a local path or an fsspec URL.
        split: "train" or "val"; with `{split}` in `file`, also "test".
        file: CSV or Parquet, in which `{split}` stands for the split; without it training and
            validation share the rows of one file.
        targets: per task what it predicts.
        inputs: columns to use, by name or number; unset: all that hold no label.
        categorical: columns that are categories even where they look like numbers.
        ignore: columns that are no inputs.
        columns: where a CSV file's names come from: its first line ("header"), nowhere ("numbers":
            "0", "1", ...) or this list. Parquet has its own.
        missing: texts that stand for a missing value; the empty one and NaN always do.
        val_fraction: part of the rows of one file that is kept for validation.
        seed: of who is kept.

    Raises:
        UsageError: there is no root or no such split, or pyarrow is needed and not installed.
        ConfigError: a setting names a column that is not there, or one that cannot be used so.
        DataError: the file is missing, unreadable or no table, or a value does not fit its column.
    """

    splits = ("train", "val", "test")

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
        columns: Columns = "header",
        missing: tuple[str, ...] = ("?",),
        val_fraction: float = 0.2,
        seed: int = 0,
    ) -> None:
        if root is None:
            raise UsageError("data.root: tabular reads a file; give the folder it lies in")
        self._check(split, file, targets, val_fraction)
        files, unknown = Root(root), frozenset(missing)
        train = _open_table(files, file.replace("{split}", "train"), columns)
        table = _open_table(files, file.replace("{split}", split), columns)
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
        find = _Finder(train)
        labels = {n: find(t.columns, f"targets.{n}.column") for n, t in targets.items()}
        used = _input_columns(
            find, inputs, find(ignore, "ignore"), [c for found in labels.values() for c in found]
        )
        encoder = _Encoder(train, train_rows, used, find(categorical, "categorical"), unknown)
        self._table = table  # keeps it for the next split
        self._width = encoder.width
        self._numbers, self._places = encoder.encode(table, self._rows)
        self._labels = {
            name: _read_labels(table, self._rows, labels[name], target, unknown)
            for name, target in targets.items()
        }

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """A task per entry of `targets`, in its order."""
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
                    )
                )
            except ValueError as error:
                problems.append(f"data.targets.{name}: {error}")
        if problems or not tasks:
            raise ConfigError(problems or ["data.targets: name at least one task"])
        return tuple(tasks)

    @classmethod
    def input_width(cls, root: str | None, **settings: Any) -> int:
        """How many values the inputs have; reads the training rows."""
        return cls(root, "train", **settings)._width

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """One row; its key ends in its number in the file, from 1 and without the header."""
        numbers = self._numbers[index]
        inputs = np.zeros(self._width + 1, dtype=np.float32)  # the last is for unseen categories
        inputs[: len(numbers)] = numbers
        inputs[self._places[index]] = 1
        return Sample(
            inputs=torch.from_numpy(inputs[:-1]),
            targets={name: target[index].clone() for name, (target, _) in self._labels.items()},
            valid={name: valid[index].clone() for name, (_, valid) in self._labels.items()},
            key=f"{self._table.where}:{self._rows[index] + 1}",
        )

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


# ------------------------------------------------------------------------------ reading a table


@attrs.frozen
class _Column:
    """The different texts of a column, and for each row which of them it has."""

    texts: tuple[str, ...]
    codes: NDArray[np.int32]

    def used(self, rows: NDArray[np.int64]) -> list[int]:
        """Which texts some rows have."""
        found: list[int] = np.flatnonzero(np.bincount(self.codes[rows])).tolist()
        return found


@attrs.frozen(eq=False)
class _Table:
    where: str
    names: tuple[str, ...]
    columns: tuple[_Column, ...]

    def __len__(self) -> int:
        return len(self.columns[0].codes)


# Tables that some dataset holds, by their contents: both splits of a run read the same one.
_held: WeakValueDictionary[tuple[str, bytes, Columns], _Table] = WeakValueDictionary()


def _open_table(root: Root, path: str, columns: Columns) -> _Table:
    where, data = root.where(path), root.read_bytes(path)
    key = (where, hashlib.sha256(data).digest(), columns)
    table = _held.get(key)
    if table is None:
        read = _read_parquet if data.startswith(_PARQUET) else _read_csv
        table = _held[key] = read(data, where, columns)
        if not len(table):
            raise DataError(f"{where}: holds no row")
    return table


def _read_csv(data: bytes, where: str, columns: Columns) -> _Table:
    stream = io.BytesIO(data)
    plain = gzip.GzipFile(fileobj=stream) if data.startswith(_GZIP) else stream
    text = io.TextIOWrapper(plain, encoding="utf-8-sig", newline="")
    lines = csv.reader(text, skipinitialspace=True, strict=True)
    rows: Iterator[list[str]] = filter(None, lines)
    try:
        first = next(rows, [])
        names = _names(first, columns)
        if columns != "header":
            rows = itertools.chain([first], rows)
        return _Table(where, names, tuple(_columns(rows, len(names))))
    except (csv.Error, UnicodeDecodeError, OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{where}: no CSV table: {error}") from error


def _names(first: Sequence[str], columns: Columns) -> tuple[str, ...]:
    if columns == "numbers":
        return tuple(map(str, range(len(first))))
    names = tuple(name.strip() for name in (first if columns == "header" else columns))
    if not names or len(set(names)) != len(names):
        raise ValueError("its columns' names are not different ones (data.columns)")
    return names


def _columns(rows: Iterator[list[str]], width: int) -> Iterator[_Column]:
    """The cells by column; a text is numbered when it is first met."""
    numbering = [defaultdict[str, int](itertools.count().__next__) for _ in range(width)]
    parts: list[list[NDArray[np.int32]]] = [[] for _ in range(width)]
    done = 0
    while block := list(itertools.islice(rows, _ROWS_AT_ONCE)):
        if set(map(len, block)) != {width}:
            at = next(i for i, row in enumerate(block) if len(row) != width)
            raise ValueError(f"row {done + at + 1} has {len(block[at])} cells, not {width}")
        for number, part, cells in zip(numbering, parts, zip(*block, strict=True), strict=True):
            part.append(np.fromiter(map(number.__getitem__, cells), np.int32, len(block)))
        done += len(block)
    for number, part in zip(numbering, parts, strict=True):
        codes = np.concatenate(part) if part else np.zeros(0, dtype=np.int32)
        yield _column(number, codes)


def _read_parquet(data: bytes, where: str, columns: Columns) -> _Table:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(
            f"{where}: is a Parquet file, and pyarrow is not installed: "
            "pip install 'mtlcore[parquet]'"
        ) from error
    if columns != "header":
        raise ConfigError(["data.columns: a Parquet file names its columns itself"])
    try:
        table = parquet.read_table(io.BytesIO(data))
        found = []
        for column in table.columns:
            values = column.combine_chunks().dictionary_encode()
            texts = ["" if value is None else str(value) for value in values.dictionary.to_pylist()]
            codes = values.indices.fill_null(len(texts)).to_numpy().astype(np.int32)
            found.append(_column([*texts, ""], codes))
    except Exception as error:  # whatever is in the file, the file is at fault
        raise DataError(f"{where}: no Parquet table: {describe(error)}") from error
    return _Table(where, tuple(table.column_names), tuple(found))


def _column(texts: Iterable[str], codes: NDArray[np.int32]) -> _Column:
    """A column without the spaces around its texts, which may make some of them equal."""
    stripped = [text.strip() for text in texts]
    number = {text: i for i, text in enumerate(dict.fromkeys(stripped))}
    renumbered = np.array([number[text] for text in stripped], dtype=np.int32)
    return _Column(tuple(number), renumbered[codes])


# --------------------------------------------------------------------------- roles of the columns


@attrs.frozen
class _Finder:
    """Finds columns by name or number."""

    table: _Table

    def __call__(self, wanted: Sequence[str | int], setting: str) -> list[int]:
        problems, found = [], []
        names = self.table.names
        for column in wanted:
            if isinstance(column, int) and 0 <= column < len(names):
                found.append(column)
            elif column in names:
                found.append(names.index(str(column)))
            else:
                hint = did_you_mean(str(column), names)
                problems.append(
                    f"data.{setting}: {self.table.where} has no column {column!r}{hint} "
                    f"(it has {len(names)}, numbered from 0)"
                )
        if problems:
            raise ConfigError(problems)
        return found


def _input_columns(
    find: _Finder,
    inputs: Sequence[str | int] | None,
    ignored: Sequence[int],
    labels: Sequence[int],
) -> list[int]:
    names = find.table.names
    if inputs is None:
        return [i for i in range(len(names)) if i not in {*ignored, *labels}]
    used = find(inputs, "inputs")
    known = [names[i] for i in used if i in labels]
    if known:
        raise ConfigError([f"data.inputs: {known[0]!r} holds a label, which must not be an input"])
    return [i for i in used if i not in ignored]


class _Encoder:
    """How rows become vectors: (numbers, a flag where one may be missing), then categories.

    Args:
        table: what is learnt from.
        rows: of it that are for training.
        used: the input columns, by number.
        categorical: those that are no numbers.
        missing: texts that stand for a missing value.

    Attributes:
        width: values of a vector.
    """

    def __init__(
        self,
        table: _Table,
        rows: NDArray[np.int64],
        used: Sequence[int],
        categorical: Sequence[int],
        missing: frozenset[str],
    ) -> None:
        self._missing = missing
        # Per column of numbers: mean, deviation, and whether it has a flag.
        self._scales: dict[int, tuple[float, float, bool]] = {}
        categories: dict[int, list[str]] = {}
        for i in used:
            column = table.columns[i]
            present = column.used(rows)
            values = None if i in categorical else _numbers(column, present, missing)
            if values is None or np.isnan(values[present]).all():
                texts = {self._category(column.texts[k]) for k in present}
                categories[i] = sorted(texts)
                continue
            cells = values[column.codes[rows]]
            gaps = np.isnan(cells)
            mean, deviation = float(cells[~gaps].mean()), float(cells[~gaps].std())
            self._scales[i] = (mean, deviation or 1.0, bool(gaps.any()))
        self._dense = sum(2 if flag else 1 for _, _, flag in self._scales.values())
        places = itertools.count(self._dense)
        self._places = {
            i: dict(zip(texts, places, strict=False)) for i, texts in categories.items()
        }
        self.width = self._dense + sum(map(len, categories.values()))

    def encode(
        self, table: _Table, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The dense values (rows, D), and the places (rows, M) that hold a 1."""
        dense = np.empty((len(rows), self._dense), dtype=np.float32)
        at = 0
        for i, (mean, deviation, flag) in self._scales.items():
            column = table.columns[i]
            values = _numbers(column, column.used(rows), self._missing)
            if values is None:
                raise DataError(
                    f"{table.where}: column {table.names[i]!r} holds numbers in training, but "
                    f"{_odd_text(column, rows, self._missing)!r} here; data.categorical may name it"
                )
            scaled = np.nan_to_num((values - mean) / deviation, nan=0.0)
            dense[:, at] = scaled[column.codes[rows]]
            if flag:
                dense[:, at + 1] = np.isnan(values)[column.codes[rows]]
            at += 2 if flag else 1
        places = np.empty((len(rows), len(self._places)), dtype=np.int32)
        for at, (i, known) in enumerate(self._places.items()):
            column = table.columns[i]
            by_code = [known.get(self._category(text), self.width) for text in column.texts]
            places[:, at] = np.array(by_code, dtype=np.int32)[column.codes[rows]]
        return dense, places

    def _category(self, text: str) -> str:
        return "" if text in self._missing else text


def _numbers(
    column: _Column, present: Sequence[int], missing: frozenset[str]
) -> NDArray[np.float64] | None:
    """A number for each text, NaN where it is missing or not present; None: one is no number."""
    values = np.full(len(column.texts), np.nan)
    for k in present:
        number = _number(column.texts[k], missing)
        if number is None:
            return None
        values[k] = number
    return values


def _number(text: str, missing: frozenset[str]) -> float | None:
    if not text or text in missing:
        return math.nan
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isinf(number) else number


def _odd_text(column: _Column, rows: NDArray[np.int64], missing: frozenset[str]) -> str:
    texts = [column.texts[k] for k in column.used(rows)]
    return next(text for text in texts if _number(text, missing) is None)


# ------------------------------------------------------------------------------------- labels


def _read_labels(
    table: _Table,
    rows: NDArray[np.int64],
    columns: Sequence[int],
    target: Target,
    missing: frozenset[str],
) -> tuple[Tensor, Tensor]:
    """Targets and masks of all rows: (rows,) of classes, else (rows, columns) of values."""
    convert = _CONVERSIONS[target.kind](target, missing)
    found = np.empty((len(rows), len(columns)))
    for at, i in enumerate(columns):
        column = table.columns[i]
        values = np.full(len(column.texts), np.nan)
        for k in column.used(rows):
            text = column.texts[k]
            value = math.nan if not text or text in missing else convert(text)
            if value is None:
                expected = f"one of {', '.join(map(repr, target.classes))}"
                raise DataError(
                    f"{table.where}: column {table.names[i]!r} holds {text!r}; a {target.kind} "
                    f"label is {_EXPECTED.get(target.kind, expected)}"
                )
            values[k] = value
        found[:, at] = values[column.codes[rows]]
    valid = ~np.isnan(found)
    values = np.where(valid, found, 0)
    if target.kind == "classification":
        return torch.from_numpy(values[:, 0].astype(np.int64)), torch.from_numpy(valid[:, 0])
    return torch.from_numpy(values.astype(np.float32)), torch.from_numpy(valid)


_Convert = Callable[[str], float | None]


def _to_class(target: Target, missing: frozenset[str]) -> _Convert:
    numbers = {text.strip(): float(i) for i, text in enumerate(target.classes)}
    other = None if target.otherwise is None else numbers[target.otherwise.strip()]
    return lambda text: numbers.get(text, other)


def _to_value(target: Target, missing: frozenset[str]) -> _Convert:
    return lambda text: _number(text, missing)


def _to_flag(target: Target, missing: frozenset[str]) -> _Convert:
    return lambda text: _YES_OR_NO.get(text.lower())


_CONVERSIONS = {"classification": _to_class, "regression": _to_value, "multilabel": _to_flag}
_EXPECTED = {"regression": "a finite number", "multilabel": "0, 1, false or true"}
