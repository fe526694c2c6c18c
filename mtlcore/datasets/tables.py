"""Tables as files: CSV (plain or .gz) and Parquet, read column by column."""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib
import io
import itertools
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal
from weakref import WeakValueDictionary

import attrs
import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError
from mtlcore.errors import ConfigError, UsageError, describe
from mtlcore.loading import Root

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_ROWS_AT_ONCE = 500  # few enough that their texts stay in the processor's cache: twice as fast

ColumnNames = Literal["header", "numbers"] | tuple[str, ...]


@attrs.frozen
class Column:
    """The distinct texts of a column, and for each row the index of its text."""

    texts: tuple[str, ...]
    codes: NDArray[np.int32]

    def used(self, rows: NDArray[np.int64]) -> list[int]:
        """Return the codes that occur in these rows."""
        codes: list[int] = np.flatnonzero(np.bincount(self.codes[rows])).tolist()
        return codes


@attrs.frozen(eq=False)
class Table:
    where: str
    names: tuple[str, ...]
    columns: tuple[Column, ...]

    def __len__(self) -> int:
        return len(self.columns[0].codes)


# Tables that some dataset holds, by their contents: both splits of a run read the same one.
_held: WeakValueDictionary[tuple[str, bytes, ColumnNames], Table] = WeakValueDictionary()


def open_table(root: Root, path: str, columns: ColumnNames) -> Table:
    where, data = root.where(path), root.read_bytes(path)
    key = (where, hashlib.sha256(data).digest(), columns)
    table = _held.get(key)
    if table is None:
        read = _read_parquet if data.startswith(_PARQUET) else _read_csv
        table = _held[key] = read(data, where, columns)
        if not len(table):
            raise DataError(f"{where}: holds no row")
    return table


def _read_csv(data: bytes, where: str, columns: ColumnNames) -> Table:
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
        return Table(where, names, tuple(_columns(rows, len(names))))
    except (csv.Error, UnicodeDecodeError, OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{where}: no CSV table: {error}") from error


def _names(first: Sequence[str], columns: ColumnNames) -> tuple[str, ...]:
    if columns == "numbers":
        return tuple(map(str, range(len(first))))
    names = tuple(name.strip() for name in (first if columns == "header" else columns))
    if not names or len(set(names)) != len(names):
        raise ValueError("its columns' names are not different ones (data.columns)")
    return names


def _columns(rows: Iterator[list[str]], width: int) -> Iterator[Column]:
    """Return the cells by column; a text is numbered when it is first met."""
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


def _read_parquet(data: bytes, where: str, columns: ColumnNames) -> Table:
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
        parsed = []
        for column in table.columns:
            values = column.combine_chunks().dictionary_encode()
            texts = ["" if value is None else str(value) for value in values.dictionary.to_pylist()]
            codes = values.indices.fill_null(len(texts)).to_numpy().astype(np.int32)
            parsed.append(_column([*texts, ""], codes))
    except Exception as error:  # whatever is in the file, the file is at fault
        raise DataError(f"{where}: no Parquet table: {describe(error)}") from error
    return Table(where, tuple(table.column_names), tuple(parsed))


def _column(texts: Iterable[str], codes: NDArray[np.int32]) -> Column:
    """Return a column without the spaces around its texts, which may make some of them equal."""
    stripped = [text.strip() for text in texts]
    number = {text: i for i, text in enumerate(dict.fromkeys(stripped))}
    renumbered = np.array([number[text] for text in stripped], dtype=np.int32)
    return Column(tuple(number), renumbered[codes])
