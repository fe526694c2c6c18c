"""Rows of a table as input vectors and targets of tasks."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcore.data import DataError
from mtlcore.datasets.tables import Column, Table
from mtlcore.errors import ConfigError, did_you_mean

_YES_OR_NO = {"false": 0.0, "true": 1.0}
# A column of so many different numbers is told of where no greater share of rows holds words.
_MANY, _FEW = 10, 0.1


@attrs.frozen(kw_only=True)
class Target:
    """What one task predicts from a row.

    Args:
        kind: of the task.
        column: its column's name or number (from 0); several for the values of a regression or the
            labels (0 and 1, false and true) of a multilabel task. That of a tagging holds a label
            per word.
        classes: of a classification or tagging: the texts that stand for its classes, in their
            order.
        otherwise: the class of any other text; by default any other text is an error.
        unit: of a regression's values.
        no: of a multilabel task: texts that mean no beside 0 and false, such as "-1".
        standardise: whether a regression learns standard deviations from the mean of the training
            labels. Its predictions and metrics are in its unit either way.
    """

    kind: Literal["classification", "regression", "multilabel", "tagging"]
    column: str | int | tuple[str | int, ...]
    classes: tuple[str, ...] = ()
    otherwise: str | None = None
    unit: str = ""
    standardise: bool = True
    no: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if not self.columns:
            raise ValueError("column: names none")
        if self.no and self.kind != "multilabel":
            raise ValueError("no: is for a multilabel task only")
        if self.kind not in ("classification", "tagging"):
            if self.classes or self.otherwise is not None:
                raise ValueError("classes and otherwise are for classification and tagging only")
        elif len(self.columns) != 1:
            raise ValueError(f"column: a {self.kind} has one column")
        elif len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError("classes: give two or more different ones")
        elif self.otherwise is not None and self.otherwise not in self.classes:
            raise ValueError(f"otherwise: {self.otherwise!r} is none of the classes")

    @property
    def columns(self) -> tuple[str | int, ...]:
        """The columns, as a tuple."""
        return self.column if isinstance(self.column, tuple) else (self.column,)


@attrs.frozen
class Cells:
    """What the texts of a table mean.

    Args:
        missing: texts that stand for a missing value, beside the empty text and NaN.
        decimal: what stands before the decimals of a number.
    """

    missing: frozenset[str]
    decimal: str

    def is_missing(self, text: str) -> bool:
        """Return whether a text stands for a missing value."""
        return not text or text in self.missing or text.lower() == "nan"

    def number(self, text: str) -> float | None:
        """Return a finite number, NaN where it is missing, None for any other text."""
        if self.is_missing(text):
            return math.nan
        if self.decimal == ",":
            text = text.replace(".", "\0").replace(",", ".")
        try:
            number = float(text)
        except ValueError:
            return None
        return number if math.isfinite(number) else None


@attrs.frozen
class ColumnFinder:
    """Finds columns by name or number."""

    table: Table

    def __call__(self, wanted: Sequence[str | int], setting: str) -> list[int]:
        problems, indices = [], []
        names = self.table.names
        for column in wanted:
            if isinstance(column, int) and 0 <= column < len(names):
                indices.append(column)
            elif column in names:
                indices.append(names.index(str(column)))
            else:
                hint = did_you_mean(str(column), names)
                if len(names) == 1:
                    hint += "; are its cells separated otherwise (data.delimiter)?"
                problems.append(
                    f"data.{setting}: {self.table.where} has no column {column!r}{hint} "
                    f"(it has {len(names)}, numbered from 0)"
                )
        if problems:
            raise ConfigError(problems)
        return indices


def input_columns(
    find: ColumnFinder,
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


class RowEncoder:
    """Turns rows into vectors: standardised numbers, flags of missing ones, one-hot categories.

    Args:
        table: that means, deviations and categories are taken from.
        rows: its training rows.
        used: indices of the input columns.
        categorical: indices of columns that are categories even where they look like numbers.
        cells: what texts mean.

    Attributes:
        width: number of values in a vector.
    """

    def __init__(
        self,
        table: Table,
        rows: NDArray[np.int64],
        used: Sequence[int],
        categorical: Sequence[int],
        cells: Cells,
    ) -> None:
        self._cells = cells
        # Per column of numbers: mean, deviation, and whether it has a flag.
        self._scales: dict[int, tuple[float, float, bool]] = {}
        categories: dict[int, list[str]] = {}
        for i in used:
            column = table.columns[i]
            present = column.used(rows)
            values = None if i in categorical else _numbers(column, present, cells)
            if values is None and i not in categorical:
                _tell_of_few_words(table, i, rows, cells)
            if values is None or np.isnan(values[present]).all():
                texts = {self._category(column.texts[k]) for k in present}
                categories[i] = sorted(texts)
                continue
            numbers = values[column.codes[rows]]
            gaps = np.isnan(numbers)
            mean, deviation = float(numbers[~gaps].mean()), float(numbers[~gaps].std())
            self._scales[i] = (mean, deviation or 1.0, bool(gaps.any()))
        self._dense = sum(2 if flag else 1 for _, _, flag in self._scales.values())
        places = itertools.count(self._dense)
        self._places = {
            i: dict(zip(texts, places, strict=False)) for i, texts in categories.items()
        }
        self.width = self._dense + sum(map(len, categories.values()))

    def encode(
        self, table: Table, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return dense values (rows, D), and the indices (rows, M) of the entries that are 1."""
        dense = np.empty((len(rows), self._dense), dtype=np.float32)
        at = 0
        for i, (mean, deviation, flag) in self._scales.items():
            column = table.columns[i]
            values = _numbers(column, column.used(rows), self._cells)
            if values is None:
                raise DataError(
                    f"{table.where}: column {table.names[i]!r} holds numbers in training, but "
                    f"{_odd_text(column, rows, self._cells)!r} here; data.categorical may name it"
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
        return "" if self._cells.is_missing(text) else text


def _numbers(column: Column, present: Sequence[int], cells: Cells) -> NDArray[np.float64] | None:
    """Return a number per text, NaN where it is missing; None if a text is no number."""
    values = np.full(len(column.texts), np.nan)
    for k in present:
        number = cells.number(column.texts[k])
        if number is None:
            return None
        values[k] = number
    return values


def _odd_text(column: Column, rows: NDArray[np.int64], cells: Cells) -> str:
    texts = [column.texts[k] for k in column.used(rows)]
    return next(text for text in texts if cells.number(text) is None)


def _tell_of_few_words(table: Table, i: int, rows: NDArray[np.int64], cells: Cells) -> None:
    """Tell of a column of numbers that a few words make one of categories."""
    column = table.columns[i]
    counts = np.bincount(column.codes[rows], minlength=len(column.texts))
    words = [k for k in column.used(rows) if cells.number(column.texts[k]) is None]
    number = int(counts[words].sum())
    if number <= _FEW * len(rows) and len(column.used(rows)) - len(words) >= _MANY:
        warnings.warn(
            f"{table.where}: column {table.names[i]!r} holds numbers, and in {number} row(s) none, "
            f"such as {column.texts[words[0]]!r}: it is read as categories; if such a text means "
            "that a number is missing, data.missing names it; data.categorical names the column if "
            "not",
            stacklevel=4,
        )


def read_labels(
    table: Table,
    rows: NDArray[np.int64],
    columns: Sequence[int],
    target: Target,
    cells: Cells,
) -> tuple[Tensor, Tensor]:
    """Return targets and masks: (rows,) for classes, otherwise (rows, columns)."""
    convert = _CONVERSIONS[target.kind](target, cells)
    found = np.empty((len(rows), len(columns)))
    for at, i in enumerate(columns):
        column = table.columns[i]
        values = np.full(len(column.texts), np.nan)
        for k in column.used(rows):
            text = column.texts[k]
            value = math.nan if not text or text in cells.missing else convert(text)
            if value is None:
                expected = f"one of {', '.join(map(repr, target.classes))}"
                raise DataError(
                    f"{table.where}: column {table.names[i]!r} holds {text!r}; a {target.kind} "
                    f"label is {_EXPECTED.get(target.kind, expected)} (data.missing names texts "
                    "that mean that there is none)"
                )
            values[k] = value
        found[:, at] = values[column.codes[rows]]
    valid = ~np.isnan(found)
    values = np.where(valid, found, 0)
    if target.kind == "classification":
        return torch.from_numpy(values[:, 0].astype(np.int64)), torch.from_numpy(valid[:, 0])
    return torch.from_numpy(values.astype(np.float32)), torch.from_numpy(valid)


def read_tags(texts: Sequence[str], target: Target, cells: Cells) -> list[int]:
    """Return the class of each word's label, -1 where it is missing.

    Raises:
        ValueError: A label is none of the classes; the message names it.
    """
    convert = _to_class(target, cells)
    found = []
    for text in texts:
        value = math.nan if text in cells.missing else convert(text)
        if value is None:
            expected = ", ".join(map(repr, target.classes[:8]))
            raise ValueError(
                f"{text!r} is none of the classes ({expected}"
                f"{', ...' if len(target.classes) > 8 else ''}; data.missing names texts that mean "
                "that there is no label, `otherwise` a class for others)"
            )
        found.append(-1 if math.isnan(value) else int(value))
    return found


_Convert = Callable[[str], float | None]


def _to_class(target: Target, cells: Cells) -> _Convert:
    texts = [text.strip() for text in target.classes]
    by_text = {text: float(i) for i, text in enumerate(texts)}
    # 1, 1.0 and 01 are one class, unless they are several.
    numbers = [cells.number(text) for text in texts]
    by_number = {number: float(i) for i, number in enumerate(numbers) if numbers.count(number) == 1}
    by_number.pop(None, None)
    other = None if target.otherwise is None else by_text[target.otherwise.strip()]

    def convert(text: str) -> float | None:
        if text in by_text:
            return by_text[text]
        return math.nan if cells.is_missing(text) else by_number.get(cells.number(text), other)

    return convert


def _to_value(target: Target, cells: Cells) -> _Convert:
    return cells.number


def _to_flag(target: Target, cells: Cells) -> _Convert:
    no = {text.strip() for text in target.no}

    def convert(text: str) -> float | None:
        if text in no:
            return 0.0
        number = _YES_OR_NO.get(text.lower(), cells.number(text))
        return number if number is None or number in (0, 1) or math.isnan(number) else None

    return convert


_CONVERSIONS = {"classification": _to_class, "regression": _to_value, "multilabel": _to_flag}
_EXPECTED = {
    "regression": "a finite number",
    "multilabel": "0, 1, false or true, or what its target's no lists",
}
