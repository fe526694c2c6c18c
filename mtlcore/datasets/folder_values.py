"""What the values of a label file stand for: classes, numbers, or no label."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

Raw = float | tuple[int, int, int]
"""A value as a file holds it: a number, or a colour (red, green, blue)."""

_COLOUR = re.compile(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})", re.IGNORECASE)
_TRIPLE = re.compile(r"[(\[]?\s*(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})\s*[)\]]?")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|inf|nan)", re.IGNORECASE)
_SHOWN = 8  # values that a message lists


_NONE, _UNKNOWN = -1, -2  # results: no label; a value without an entry
_NO_COLOUR = np.uint32(1 << 24)


@attrs.frozen(kw_only=True)
class ValueMap:
    """What each value of a file becomes; values that it does not name are errors.

    Args:
        keys: the values, rising; colours as `packed` numbers.
        results: what each of them becomes: a class, a number, or -1 for no label.
        colours: whether the values are colours.
        found: whether they were found by looking into files, not declared.
    """

    keys: NDArray[np.float64]
    results: NDArray[Any]
    colours: bool
    found: bool

    def __call__(
        self, planes: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the results, where they are labels, and where there is none for want of an entry.

        Values are (1, H, W), colours (3, H, W); all that is returned is (H, W).
        """
        values = packed(planes) if self.colours else planes[0]
        if values.dtype in (np.uint8, np.uint16):
            table = np.full(np.iinfo(values.dtype).max + 1, _UNKNOWN, dtype=self.results.dtype)
            inside = (self.keys >= 0) & (self.keys < len(table)) & (self.keys % 1 == 0)
            table[self.keys[inside].astype(np.int64)] = self.results[inside]
            results = table[values]
        else:
            # 0.1 of single precision is not that of double.
            keys = self.keys.astype(values.dtype) if values.dtype.kind == "f" else self.keys
            at = np.searchsorted(keys, values).clip(max=len(keys) - 1)
            unknown = self.results.dtype.type(_UNKNOWN)
            results = np.where(keys[at] == values, self.results[at], unknown)
        return results, results >= 0, results == _UNKNOWN


def value_map(
    pairs: Mapping[Raw, int], invalid: Iterable[Raw], dtype: str = "int64", *, found: bool = False
) -> ValueMap:
    """Return the map of values to classes or numbers.

    Args:
        pairs: value -> class.
        invalid: values without a label.
        dtype: of the results.
        found: whether they were found by looking into files.
    """
    results = {**dict.fromkeys(invalid, _NONE), **pairs}
    numbers = {_pack(raw) if isinstance(raw, tuple) else raw: k for raw, k in results.items()}
    keys = sorted(key for key in numbers if key == key)  # NaN equals no key
    return ValueMap(
        keys=np.array(keys, dtype=np.float64),
        results=np.array([numbers[key] for key in keys], dtype=dtype),
        colours=any(isinstance(raw, tuple) for raw in pairs),
        found=found,
    )


def are_colours(planes: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which pixels have whole numbers from 0 to 255 only: (3, H, W) -> (H, W)."""
    inside: NDArray[np.bool_] = np.all((planes >= 0) & (planes <= 255), axis=0)
    if planes.dtype.kind == "f":
        inside &= np.all(np.floor(planes) == planes, axis=0)
    return inside


def packed(planes: NDArray[Any]) -> NDArray[np.uint32]:
    """Return a number per colour, one that no colour has elsewhere: (3, H, W) -> (H, W)."""
    inside = are_colours(planes)
    wide = np.where(inside, planes, 0).astype(np.uint32)
    codes: NDArray[np.uint32] = (wide[0] << 16) | (wide[1] << 8) | wide[2]
    return np.where(inside, codes, _NO_COLOUR)


def _pack(colour: tuple[int, int, int]) -> int:
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def shown(values: NDArray[Any], colours: bool) -> list[str]:
    """Return distinct values as a description writes them, the first few."""
    distinct = np.unique(values)[:_SHOWN].tolist()
    return [f'"#{int(v):06x}"' if colours else f"{v:g}" for v in distinct]


def parse_raw(text: Any) -> Raw | None:
    """Return a value as a description writes it: a number, "nan", "#804080", [128, 64, 128].

    None: it is something else.
    """
    if isinstance(text, bool):
        return None
    if isinstance(text, int | float):
        return float(text)
    if isinstance(text, list):
        whole = len(text) == 3 and all(type(v) is int and 0 <= v <= 255 for v in text)
        return (text[0], text[1], text[2]) if whole else None
    if not isinstance(text, str):
        return None
    if match := _COLOUR.fullmatch(text.strip()):
        return int(match[1], 16), int(match[2], 16), int(match[3], 16)
    if match := _TRIPLE.fullmatch(text.strip()):
        colour = int(match[1]), int(match[2]), int(match[3])
        return colour if max(colour) <= 255 else None
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def parse_values(
    table: Mapping[str, Any], classes: Sequence[str]
) -> tuple[dict[Raw, int], list[str]]:
    """Return value -> class number, and the classes' names.

    Args:
        table: `{7 = "road"}`, or the other way round, `{road = 7}`; both with several values for a
            class.
        classes: the names; empty: those of the table, in its order.

    Raises:
        ValueError: what is wrong with which entry.
    """
    entries: list[tuple[Raw, Any]] = []
    for key, value in table.items():
        raw = parse_raw(key)
        if raw is not None and isinstance(value, str | int):
            entries.append((raw, value))
            continue
        one = parse_raw(value)
        several = (
            [one]
            if one is not None
            else [*map(parse_raw, value if isinstance(value, list) else ())]
        )
        entries += [(raw, key) for raw in several if raw is not None]
        if not several or None in several:
            raise ValueError(
                f'values: {key} = {value!r} is neither VALUE = CLASS, such as 7 = "road" or '
                '"#804080" = "road", nor CLASS = VALUE'
            )
    names = [*classes] or [*dict.fromkeys(str(name) for _, name in entries)]
    if len({type(raw) for raw, _ in entries}) > 1:
        raise ValueError("values: has numbers and colours; a file holds either")
    result: dict[Raw, int] = {}
    for raw, name in entries:
        by_number = isinstance(name, int) and not isinstance(name, bool) and 0 <= name < len(names)
        if name not in names and not by_number:
            raise ValueError(f"values: {name!r} is none of the classes ({', '.join(names)})")
        number = names.index(name) if name in names else name
        if raw != raw or result.setdefault(raw, number) != number:
            raise ValueError(f"values: {raw} stands for two classes, or for none")
    return result, names


def parse_invalid(value: Any, channels: int) -> list[tuple[float, ...]]:
    """Return the values of pixels without a label, each with a number per channel.

    Args:
        value: a value; one number per channel; or a list of several of these.
        channels: of the file; 3 where it holds colours.

    Raises:
        ValueError: what is wrong.
    """
    per_channel = (
        isinstance(value, list)
        and channels > 1
        and len(value) == channels
        and not any(isinstance(part, list) or _is_colour(part) for part in value)
    )
    found: list[tuple[float, ...]] = []
    for item in value if isinstance(value, list) and not per_channel else [value]:
        parsed = [parse_raw(part) for part in (item if isinstance(item, list) else [item])]
        if len(parsed) == 1 and isinstance(parsed[0], tuple):
            parsed = [*parsed[0]]
        numbers = [float(number) for number in parsed if isinstance(number, int | float)]
        if not numbers or len(numbers) < len(parsed):
            raise ValueError(
                f'invalid: {item!r} is no value; give a number, "nan", "inf", "-inf", a colour '
                '"#804080", one number per channel, or a list of several'
            )
        if len(numbers) not in (1, channels):
            raise ValueError(f"invalid has {len(numbers)} numbers for {channels} channel(s)")
        found.append(tuple(numbers * channels if len(numbers) == 1 else numbers))
    return found


def _is_colour(text: Any) -> bool:
    return isinstance(text, str) and isinstance(parse_raw(text), tuple)
