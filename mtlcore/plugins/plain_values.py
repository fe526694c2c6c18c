"""Values as files can hold them: numbers, texts, dates, lists and tables."""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import attrs

_DATES = (datetime.datetime, datetime.date, datetime.time)


class NotPlain(Exception):
    """A value is nothing that a file can hold; the text says why."""


def as_plain(value: Any) -> Any:
    """Return a value as TOML has it, from which `structure` makes the same value again.

    A path becomes its text, an enumeration its value, a set a sorted list, a record a table. None,
    which TOML has not, stays where a table may leave it out.

    Raises:
        NotPlain: TOML has nothing like it; the message says what.
    """
    if isinstance(value, Enum):
        return as_plain(value.value)
    if isinstance(value, PurePath):
        return _text(str(value))
    if isinstance(value, str):
        return _text(str(value))
    if attrs.has(type(value)):
        return as_plain(attrs.asdict(value, recurse=False))
    if isinstance(value, Mapping):
        return {_text(str(as_plain(key))): as_plain(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(
            (_item(item) for item in value), key=lambda item: (str(type(item)), str(item))
        )
    if isinstance(value, list | tuple):
        return [_item(item) for item in value]
    if value is None or isinstance(value, (bool, *_DATES)):
        return value
    if isinstance(value, numbers.Integral):  # numpy's too
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise NotPlain(f"a {type(value).__name__} cannot be written in TOML")


def _item(value: Any) -> Any:
    if value is None:
        raise NotPlain("a list with None in it cannot be written in TOML")
    return as_plain(value)


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NotPlain(f"the text {text!r} is not UTF-8") from error
    return text
