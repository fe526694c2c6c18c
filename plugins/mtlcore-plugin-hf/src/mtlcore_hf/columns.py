"""The columns of a row as inputs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import datasets
import numpy as np
import torch
from torch import Tensor

from mtlcore.data import DataError
from mtlcore.errors import ConfigError, UsageError, describe, shown
from mtlcore.loading import Root

#: Without a tokenizer: the ids of bytes begin behind that of padding, and this one ends a text.
_END = 257


def image_bytes(value: Any, root: str | None, where: str) -> bytes:
    """Return the contents of an image in a cell.

    Args:
        value: what the library gives for an image that is not decoded; a path in the root; or the
            numbers of an array.
        root: where a path lies.
        where: the cell's place, for messages.

    Raises:
        DataError: there is no image.
    """
    if isinstance(value, dict) and ("bytes" in value or "path" in value):
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        value = value.get("path")
        try:
            return Path(str(value)).read_bytes()
        except OSError as error:
            raise DataError(f"{where}: {value}: cannot be read ({describe(error)})") from error
    if isinstance(value, str):
        return Root(root or ".").read_bytes(value)
    if isinstance(value, bytes):
        return value
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or array.ndim not in (2, 3):
            raise ValueError(f"{shown(value)} is no image")
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


@final
class Numbers:
    """Columns of numbers as a vector: standardised, with flags of those that are missing.

    Mean and deviation are those of the training rows. A class is a value per class, and a missing
    number the mean, with a second value of 1 where the training rows lack some.

    Args:
        train: the training rows.
        columns: their names.
        told: the dataset, for messages.

    Raises:
        ConfigError: a column holds no numbers.
    """

    def __init__(self, train: datasets.Dataset, columns: Sequence[str], told: str) -> None:
        self._scales: dict[str, tuple[float, float, bool]] = {}
        self._classes: dict[str, int] = {}
        for name in columns:
            feature = train.features[name]
            if isinstance(feature, datasets.ClassLabel):
                self._classes[name] = feature.num_classes
                continue
            kind = getattr(feature, "dtype", "")
            if not kind.startswith(("int", "uint", "float", "bool")):
                held = kind or "no"
                raise ConfigError(
                    [f"data.numbers: column {name!r} of {told} holds {held} values, not numbers"]
                )
            cells = train.data.column(name).to_pandas()
            column = cells.to_numpy(dtype=np.float64, na_value=np.nan)
            known = column[np.isfinite(column)]
            mean = float(known.mean()) if len(known) else 0.0
            deviation = float(known.std()) if len(known) else 0.0
            self._scales[name] = mean, deviation or 1.0, len(known) < len(column)

    def vector(self, row: dict[str, Any], where: str) -> Tensor:
        """Return the vector of a row."""
        values: list[float] = []
        for name, (mean, deviation, flag) in self._scales.items():
            missing = row[name] is None or not np.isfinite(row[name])
            values.append(0.0 if missing else (float(row[name]) - mean) / deviation)
            values += [float(missing)] if flag else []
        for name, number in self._classes.items():
            own = row[name]
            values += [float(own == place) for place in range(number)]
        return torch.tensor(values, dtype=torch.float32)


@final
class Words:
    """A column of texts as ids of tokens.

    Args:
        tokenizer: folder or file of a tokenizer, as `tokenizer.json`; None: bytes are tokens.
        length: number of tokens at which a text is cut off.

    Raises:
        UsageError: there is no such file, or the library tokenizers is missing.
    """

    def __init__(self, tokenizer: str | None, length: int) -> None:
        self._length = length
        self._tokenizer: Any = None if tokenizer is None else _tokenizer(tokenizer, length)

    def ids(self, text: Any, where: str) -> Tensor:
        """Return the ids of a text."""
        if not isinstance(text, str) or not text:
            raise DataError(f"{where}: is {shown(text)}, and no text; leave the row out")
        if self._tokenizer is not None:
            return torch.tensor(self._tokenizer.encode(text).ids, dtype=torch.int64)
        data = [byte + 1 for byte in text.encode("utf-8", "surrogatepass")]
        return torch.tensor([*data[: self._length - 1], _END], dtype=torch.int64)


def _tokenizer(name: str, length: int) -> Any:
    place = Path(name).expanduser()
    file = place / "tokenizer.json" if place.is_dir() else place
    if not file.is_file():
        raise UsageError(f"data.tokenizer: there is no file {file}")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(
            "data.tokenizer: the library tokenizers is not installed: pip install tokenizers"
        ) from error
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"data.tokenizer: {file} is no tokenizer ({describe(error)})") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return tokenizer
