"""Rows of a table as input vectors and targets of tasks."""

from __future__ import annotations

import itertools
import math
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

_YES_OR_NO = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}


@attrs.frozen(kw_only=True)
class Target:
    """What one task predicts from a row.

    Args:
        kind: of the task.
        column: its column's name or number (from 0); several for the values of a regression or the
            labels (0 and 1, false and true) of a multilabel task.
        classes: of a classification: the texts that stand for its classes, in their order.
        otherwise: the class of any other text; by default any other text is an error.
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
        """The columns, as a tuple."""
        return self.column if isinstance(self.column, tuple) else (self.column,)


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
        missing: texts that stand for a missing value.

    Attributes:
        width: number of values in a vector.
    """

    def __init__(
        self,
        table: Table,
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
        self, table: Table, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return dense values (rows, D), and the indices (rows, M) of the entries that are 1."""
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
    column: Column, present: Sequence[int], missing: frozenset[str]
) -> NDArray[np.float64] | None:
    """Return a number per text, NaN where it is missing; None if a text is no number."""
    values = np.full(len(column.texts), np.nan)
    for k in present:
        number = to_number(column.texts[k], missing)
        if number is None:
            return None
        values[k] = number
    return values


def to_number(text: str, missing: frozenset[str]) -> float | None:
    if not text or text in missing:
        return math.nan
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isinf(number) else number


def _odd_text(column: Column, rows: NDArray[np.int64], missing: frozenset[str]) -> str:
    texts = [column.texts[k] for k in column.used(rows)]
    return next(text for text in texts if to_number(text, missing) is None)


def read_labels(
    table: Table,
    rows: NDArray[np.int64],
    columns: Sequence[int],
    target: Target,
    missing: frozenset[str],
) -> tuple[Tensor, Tensor]:
    """Return targets and masks: (rows,) for classes, otherwise (rows, columns)."""
    convert = _CONVERSIONS[target.kind](target, missing)
    cells = np.empty((len(rows), len(columns)))
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
        cells[:, at] = values[column.codes[rows]]
    valid = ~np.isnan(cells)
    values = np.where(valid, cells, 0)
    if target.kind == "classification":
        return torch.from_numpy(values[:, 0].astype(np.int64)), torch.from_numpy(valid[:, 0])
    return torch.from_numpy(values.astype(np.float32)), torch.from_numpy(valid)


_Convert = Callable[[str], float | None]


def _to_class(target: Target, missing: frozenset[str]) -> _Convert:
    numbers = {text.strip(): float(i) for i, text in enumerate(target.classes)}
    other = None if target.otherwise is None else numbers[target.otherwise.strip()]
    return lambda text: numbers.get(text, other)


def _to_value(target: Target, missing: frozenset[str]) -> _Convert:
    return lambda text: to_number(text, missing)


def _to_flag(target: Target, missing: frozenset[str]) -> _Convert:
    return lambda text: _YES_OR_NO.get(text.lower())


_CONVERSIONS = {"classification": _to_class, "regression": _to_value, "multilabel": _to_flag}
_EXPECTED = {"regression": "a finite number", "multilabel": "0, 1, false or true"}
