"""Tables as files: CSV, JSON lines and CoNLL (plain or .gz) and Parquet, column by column."""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib
import io
import itertools
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal
from weakref import WeakValueDictionary

import attrs
import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError
from mtlcore.errors import ConfigError, UsageError, describe, shown
from mtlcore.loading import Root, marked_encoding

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_JSON_LINES = (".jsonl", ".ndjson")
_CONLLU, _CONLL = ".conllu", (".conll", ".conllu", ".iob", ".iob2", ".bio", ".bioes")
#: A no-break space is part of a word.
_WORD = re.compile(r"[^ \t\r\n\f\v]+")
_NO_BREAK = "\N{NO-BREAK SPACE}"
_DELIMITERS = ",;\t|"
_SAID = re.compile(r"\"?sep=(.)\"?\s*", re.IGNORECASE)  # the first line that Excel may write
_LOOKED_AT = 100  # lines from which the delimiter is found
_WITH_COMMA = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.IGNORECASE)
_WITH_POINT = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.IGNORECASE)
_ROWS_AT_ONCE = 500  # few enough that their texts stay in the processor's cache: twice as fast

ColumnNames = Literal["header", "numbers"] | tuple[str, ...]


@attrs.frozen(kw_only=True)
class Form:
    """How a CSV file is written; None: as its first lines look.

    Args:
        columns: where the names come from.
        delimiter: what stands between cells.
        decimal: what stands before the decimals of a number.
        encoding: of the text.
    """

    columns: ColumnNames = "header"
    delimiter: str | None = None
    decimal: Literal[".", ","] | None = None
    encoding: str | None = None


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
    decimal: str = "."
    #: Names of the columns that hold lists of words, which stand in their texts between spaces.
    lists: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.columns[0].codes)


# Tables that some dataset holds, by their contents: both splits of a run read the same one.
_held: WeakValueDictionary[tuple[str, bytes, Form], Table] = WeakValueDictionary()


def open_table(root: Root, path: str, form: Form) -> Table:
    where, data = root.where(path), root.read_bytes(path)
    key = (where, hashlib.sha256(data).digest(), form)
    table = _held.get(key)
    if table is None:
        read = _reader(path, data)
        table = _held[key] = read(data, where, form)
        if not len(table):
            raise DataError(f"{where}: holds no row")
    return table


def _reader(path: str, data: bytes) -> Callable[[bytes, str, Form], Table]:
    if data.startswith(_PARQUET):
        return _read_parquet
    name = path.removesuffix(".gz")
    if name.endswith(_CONLL):
        return partial(_read_conll, universal=name.endswith(_CONLLU))
    return _read_json_lines if name.endswith(_JSON_LINES) else _read_csv


def _read_csv(data: bytes, where: str, form: Form) -> Table:
    try:
        plain = gzip.GzipFile(fileobj=io.BytesIO(data)) if data.startswith(_GZIP) else None
        encoding = form.encoding or marked_encoding(plain.read(4) if plain else data)
        source = plain or io.BytesIO(data)
        source.seek(0)
        text = io.TextIOWrapper(source, encoding=encoding, newline="")
        head = [line.removeprefix("\ufeff") for line in itertools.islice(text, _LOOKED_AT)]
        said = _SAID.fullmatch(head[0]) if head else None
        if said is not None:
            del head[0]
        delimiter = form.delimiter or (said[1] if said else _delimiter(head))
        lines = csv.reader(
            itertools.chain(head, text), skipinitialspace=True, strict=True, delimiter=delimiter
        )
        rows: Iterator[list[str]] = filter(None, lines)
        first = next(rows, [])
        names = _names(first, form.columns)
        if form.columns != "header":
            rows = itertools.chain([first], rows)
        columns = tuple(_columns(rows, len(names), delimiter))
    except LookupError as error:
        raise ConfigError([f"data.encoding: {error}"]) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: no CSV table: no text in {error.encoding} (byte "
            f"{error.object[error.start]:#x}); save it as UTF-8, or name its encoding "
            "(data.encoding, such as cp1252 or latin-1)"
        ) from error
    except (csv.Error, OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{where}: no CSV table: {error}") from error
    decimal = form.decimal or _decimal(columns, delimiter)
    return Table(where, names, columns, decimal)


def _delimiter(head: Sequence[str]) -> str:
    """Return what parts every line into the same number of cells, two or more; else a comma."""
    found = []
    for delimiter in _DELIMITERS:
        try:
            rows = [*filter(None, csv.reader(head, skipinitialspace=True, delimiter=delimiter))]
        except csv.Error:
            continue
        if len(head) == _LOOKED_AT:
            del rows[-1:]  # it may end in a line that is not looked at
        if len({len(row) for row in rows}) != 1 or len(rows[0]) == 1:
            continue
        with_comma = [cell.strip() for row in rows for cell in row if "," in cell]
        # Commas inside the cells of another delimiter are decimal ones, else it is a cell's text.
        if delimiter == "," or all(map(_WITH_COMMA.fullmatch, with_comma)):
            found.append(delimiter)
    return found[-1] if found else ","


def _decimal(columns: Sequence[Column], delimiter: str) -> str:
    """Return a comma where numbers are written with one, and none with a point."""
    if delimiter == ",":
        return "."
    texts = [text for column in columns for text in column.texts]
    comma = any(map(_WITH_COMMA.fullmatch, texts)) and not any(map(_WITH_POINT.fullmatch, texts))
    return "," if comma else "."


def _names(first: Sequence[str], columns: ColumnNames) -> tuple[str, ...]:
    if columns == "numbers":
        return tuple(map(str, range(len(first))))
    names = tuple(name.strip() for name in (first if columns == "header" else columns))
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if not names or twice:
        raise ValueError(
            f"its columns' names are not different ones, {', '.join(map(repr, twice)) or 'none'} "
            "(data.columns names them)"
        )
    return names


def _columns(rows: Iterator[list[str]], width: int, delimiter: str) -> Iterator[Column]:
    """Return the cells by column; a text is numbered when it is first met."""
    numbering = [defaultdict[str, int](itertools.count().__next__) for _ in range(width)]
    parts: list[list[NDArray[np.int32]]] = [[] for _ in range(width)]
    done = 0
    while block := list(itertools.islice(rows, _ROWS_AT_ONCE)):
        if set(map(len, block)) != {width}:
            at = next(i for i, row in enumerate(block) if len(row) != width)
            raise ValueError(
                f"row {done + at + 1} has {len(block[at])} cells, not {width}, separated by "
                f"{delimiter!r} (data.delimiter names another one)"
            )
        for number, part, cells in zip(numbering, parts, zip(*block, strict=True), strict=True):
            part.append(np.fromiter(map(number.__getitem__, cells), np.int32, len(block)))
        done += len(block)
    for number, part in zip(numbering, parts, strict=True):
        codes = np.concatenate(part) if part else np.zeros(0, dtype=np.int32)
        yield _column(number, codes)


def _read_json_lines(data: bytes, where: str, form: Form) -> Table:
    """Read an object per line; a key that one of them lacks, or that is null, is missing there."""
    if form.columns != "header":
        raise ConfigError(["data.columns: JSON lines name their columns themselves"])
    text = _plain_text(data, where, form, "JSON lines")
    rows: list[dict[str, str]] = []
    lists: set[str] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"{shown(row)} is no object")
            lists |= {key.strip() for key, value in row.items() if isinstance(value, list)}
            rows.append({key.strip(): _cell(key, value) for key, value in row.items()})
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: line {number}: {error}") from error
    names = tuple(dict.fromkeys(itertools.chain.from_iterable(rows)))
    if not names:
        raise DataError(f"{where}: holds no row")
    columns = []
    for name in names:
        texts = [row.get(name, "") for row in rows]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        codes = np.fromiter(map(numbers.__getitem__, texts), np.int32, len(texts))
        columns.append(_column(numbers, codes))
    return Table(where, names, tuple(columns), lists=frozenset(lists))


def _plain_text(data: bytes, where: str, form: Form, what: str) -> str:
    try:
        plain = gzip.decompress(data) if data.startswith(_GZIP) else data
        return plain.decode(form.encoding or marked_encoding(plain[:4])).removeprefix("\ufeff")
    except LookupError as error:
        raise ConfigError([f"data.encoding: {error}"]) from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{where}: no {what}: {error}") from error


def _read_conll(data: bytes, where: str, form: Form, *, universal: bool) -> Table:
    """Read a word per line, with its labels beside it, and an empty line between sentences.

    A row is a sentence, a cell the words or labels of a column between spaces. Columns stand
    between tabs or, without one, between spaces. Of CoNLL-U, comments, words that stand for several
    ("1-2") and words that are not written ("1.1") are left out; of the others "-DOCSTART-".
    """
    lines = _plain_text(data, where, form, "CoNLL file").split("\n")
    sentences: list[list[list[str]]] = [[]]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            sentences.append([])
            continue
        cells = line.strip("\r").split("\t") if "\t" in line else _WORD.findall(line)
        if cells[0] == "-DOCSTART-" or (
            universal and (line.startswith("#") or not cells[0].isdecimal())
        ):
            continue
        # A word may hold a space, such as a long number of CoNLL-U.
        cells = [cell.strip().replace(" ", _NO_BREAK) for cell in cells]
        first = next((s[0] for s in sentences if s), cells)
        if len(cells) != len(first) or not all(cells):
            raise DataError(
                f"{where}: line {number} has {len(cells)} cells, {len(first)} were expected, none "
                "of them empty (a word per line with its labels, between tabs or spaces)"
            )
        sentences[-1].append(cells)
    rows = [[" ".join(column) for column in zip(*s, strict=True)] for s in sentences if s]
    if not rows:
        raise DataError(f"{where}: holds no row")
    columns = "numbers" if form.columns == "header" else form.columns
    try:
        names = _names(rows[0], columns)
        if len(names) != len(rows[0]):
            raise ValueError(f"data.columns names {len(names)} columns, and it has {len(rows[0])}")
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    table = tuple(_columns(iter(rows), len(names), " "))
    return Table(where, names, table, lists=frozenset(names))


def _cell(key: str, value: object) -> str:
    if isinstance(value, list) and value:
        words = [word for word in value if isinstance(word, str) and _WORD.fullmatch(word)]
        if len(words) == len(value):
            return " ".join(words)
    if isinstance(value, dict | list):
        raise ValueError(
            f"{key!r} is {shown(value)}; a cell is a text, a number, true or false, or a list of "
            "words without spaces"
        )
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _read_parquet(data: bytes, where: str, form: Form) -> Table:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(
            f"{where}: is a Parquet file, and pyarrow is not installed: "
            "pip install 'mtlcore[parquet]'"
        ) from error
    if form.columns != "header":
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
