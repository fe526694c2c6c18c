"""The `dataset.toml` of a folder of photographs: how it is read and checked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError
from mtlcore.datasets.folder_values import (
    Raw,
    ValueMap,
    parse_invalid,
    parse_values,
    value_map,
)
from mtlcore.errors import ConfigError, did_you_mean
from mtlcore.loading import MissingFile, Root, decode_text
from mtlcore.storage import decoded
from mtlcore.tasks import Task

_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_CHANNELS = {"depth": 1, "inverse-depth": 1, "normals": 3, "edges": 1, "saliency": 1}


@attrs.frozen(kw_only=True)
class LabelFiles:
    """How one task's files are read.

    Args:
        task: the task.
        file: pattern of the files.
        scale: (C, 1, 1), a number per channel.
        offset: (C, 1, 1).
        invalid: (K, C), values of pixels without a label; None: all have one.
        values: what each value becomes; None: it is scaled and shifted.
    """

    task: Task
    file: str
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]
    invalid: NDArray[np.float64] | None
    values: ValueMap | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its files' values are taken as they are."""
        return self.values is None and bool((self.scale == 1).all() and (self.offset == 0).all())


@attrs.frozen(kw_only=True)
class Kept:
    """Which share of the names is kept for validation, and the seed of the choice."""

    fraction: float
    seed: int


@attrs.frozen(kw_only=True)
class Description:
    """What a `dataset.toml` says.

    Args:
        image: pattern of the photographs.
        labels: of each task.
        names: path of a list of names; None: every photograph there is.
        size: height and width for the network; None: the photographs' own.
        val: what is kept for validation where all photographs lie together: a share, or a list.
        encoding: of lists; None: UTF-8, or as their mark says.
    """

    image: str
    labels: tuple[LabelFiles, ...]
    names: str | None
    size: tuple[int, int] | None
    val: Kept | str | None = None
    encoding: str | None = None


def choices(pattern: str, split: str) -> list[str]:
    """Return the patterns of a split that one with `{jpg,png}` stands for, in order."""
    parts = _CHOICE.split(pattern.replace("{split}", split))
    # Every second part is what stood between braces.
    options = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*options)]


def load_description(root: Root, spec: str) -> Description:
    where, data = _read(root, spec)
    try:
        table = decoded(decode_text(data, where), "TOML")
    except ValueError as error:
        raise ConfigError([f"{where}: {error}"]) from error
    except DataError as error:
        raise ConfigError([str(error)]) from error
    problems: list[str] = []
    parsed = _parse(table, problems)
    if problems or parsed is None:
        raise ConfigError(f"{where}: {problem}" for problem in problems)
    return parsed


def _read(root: Root, spec: str) -> tuple[str, bytes]:
    # The root comes first: a dataset.toml that happens to lie in the working directory must not
    # describe another folder's files.
    own_path = "://" in spec or spec.startswith("~") or _leaves_root(spec)
    places = [(Root(spec), "")] if own_path else [(root, spec), (Root(spec), "")]
    missing = []
    for place, relative in places:
        try:
            return place.where(relative), place.read_bytes(relative)
        except MissingFile as error:
            missing.append(error)
    if not own_path and not root.exists(""):
        raise missing[0]
    first, *others = (place.where(relative) for place, relative in places)
    nor = "".join(f", nor {other}" for other in others)
    raise ConfigError(
        [f"{first}: no such file{nor}; it says how the dataset's files are read (data.spec)"]
    )


def _leaves_root(spec: str) -> bool:
    """Whether a path of the configuration, which may name any file, is none inside the root."""
    return Path(spec).is_absolute() or ".." in Path(spec).parts


def parse_map(
    name: str, entry: Mapping[str, Any], path: str, problems: list[str]
) -> LabelFiles | None:
    """Return how the maps of a task are read that a table describes as a `dataset.toml` does.

    Args:
        name: of the task.
        entry: its keys, without `file`.
        path: of the table, for messages.
        problems: gets a message for each thing that is wrong.
    """
    found: list[str] = []
    label = _parse_label(name, {**entry, "file": "{name}"}, None, found)
    problems += [problem.replace(f"tasks.{name}", path, 1) for problem in found]
    return label


def _parse(table: dict[str, Any], problems: list[str]) -> Description | None:
    _check(table, "", _TOP_KEYS, ("image", "tasks"), problems)
    tasks = table.get("tasks")
    labels = (
        [_parse_label(name, entry, table.get("image"), problems) for name, entry in tasks.items()]
        if isinstance(tasks, dict)
        else []
    )
    if problems:
        return None
    by_split = "{split}" in table["image"] + table.get("names", "")
    if not by_split and "val" not in table:
        problems.append(
            "image: has no {split}, so that training and validation would be the same; val = "
            "{fraction = 0.2, seed = 0} keeps a part of one folder for validation, val = "
            '"val.txt" those that a list names'
        )
    if by_split and "val" in table:
        problems.append("val: is for photographs in one folder, and {split} parts these already")
    val = table.get("val")
    return Description(
        image=table["image"],
        labels=tuple(label for label in labels if label is not None),
        names=table.get("names"),
        size=tuple(table["size"]) if "size" in table else None,
        val=Kept(fraction=val["fraction"], seed=val.get("seed", 0))
        if isinstance(val, dict)
        else val,
        encoding=table.get("encoding"),
    )


def _parse_label(name: str, entry: Any, image: Any, problems: list[str]) -> LabelFiles | None:
    path = f"tasks.{name}"
    if not isinstance(entry, dict):
        problems.append(f"{path}: must be a table, [{path}]")
        return None
    before = len(problems)
    _check(entry, f"{path}.", _LABEL_KEYS, ("kind", "file"), problems)
    if len(problems) > before:
        return None
    kind, classes = entry["kind"], tuple(entry.get("classes", ()))
    if isinstance(image, str) and {*choices(image, "")} <= {*choices(entry["file"], "")}:
        problems.append(f"{path}.file: is the pattern of the photographs; labels need their own")
        return None
    try:
        values, classes = _parse_values(entry, classes)
    except ValueError as error:
        problems.append(f"{path}.{error}")
        return None
    channels = entry.get("channels", len(classes) or _CHANNELS.get(kind))
    if channels is None:
        key, what = ("classes", "names") if kind == "segmentation" else ("channels", "number")
        problems.append(f"{path}.{key}: missing; a task of kind {kind!r} needs their {what}")
        return None
    try:
        task = Task(
            name=name,
            kind=kind,
            channels=channels,
            class_names=classes,
            unit=entry.get("unit", ""),
        )
        _check_task(task, entry)
        invalid = _invalid(entry, task, values)
        return LabelFiles(
            task=task,
            file=entry["file"],
            scale=_per_channel(entry, "scale", 1.0, task).astype(np.float32),
            offset=_per_channel(entry, "offset", 0.0, task).astype(np.float32),
            invalid=np.array(invalid, dtype=np.float64) if invalid else None,
            values=_value_map(values, invalid) if values else None,
        )
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None


def _parse_values(
    entry: Mapping[str, Any], classes: tuple[str, ...]
) -> tuple[dict[Raw, int], tuple[str, ...]]:
    if "values" not in entry:
        return {}, classes
    if Task(name="any", kind=entry["kind"], channels=1).dtype != "int64" or "offset" in entry:
        raise ValueError("values: is for classes, and there is no offset beside it")
    if len(set(classes)) != len(classes):
        raise ValueError("classes: two have the same name, so that values cannot tell them apart")
    values, names = parse_values(entry["values"], classes)
    return values, tuple(names)


def _invalid(
    entry: Mapping[str, Any], task: Task, values: Mapping[Raw, int]
) -> list[tuple[float, ...]]:
    if "invalid" not in entry:
        return []
    in_colours = any(isinstance(raw, tuple) for raw in values)
    channels = 3 if in_colours else 1 if task.dtype == "int64" else task.channels
    return parse_invalid(entry["invalid"], channels)


def _value_map(values: Mapping[Raw, int], invalid: Sequence[tuple[float, ...]]) -> ValueMap:
    holes: list[Raw] = []
    for hole in invalid:
        if len(hole) == 1:
            holes.append(hole[0])
        elif all(part.is_integer() and 0 <= part <= 255 for part in hole):
            red, green, blue = map(int, hole)
            holes.append((red, green, blue))
    both = [raw for raw in holes if raw in values]
    if both:
        raise ValueError(f"{both[0]} is invalid and a class at once")
    return value_map(values, holes)


def _check_task(task: Task, entry: Mapping[str, Any]) -> None:
    if task.layout != "map":
        raise ValueError(f"kind {task.kind!r} has no value per pixel; folder reads maps only")
    if task.channels != _CHANNELS.get(task.kind, task.channels):
        raise ValueError(f"channels must be {_CHANNELS[task.kind]} for kind {task.kind!r}")
    if task.dtype == "int64" and ("scale" in entry or not isinstance(entry.get("offset", 0), int)):
        raise ValueError("class numbers have no scale, and only a whole offset")


def _per_channel(
    entry: Mapping[str, Any], key: str, default: float, task: Task
) -> NDArray[np.float64]:
    """Return the number or numbers of a key as (C, 1, 1)."""
    channels = 1 if task.dtype == "int64" else task.channels
    numbers = np.atleast_1d(np.asarray(entry.get(key, default), dtype=np.float64))
    if len(numbers) not in (1, channels):
        raise ValueError(f"{key} has {len(numbers)} numbers for {channels} channel(s)")
    return np.broadcast_to(numbers.reshape(-1, 1, 1), (channels, 1, 1))


def _check(
    table: Mapping[str, Any],
    path: str,
    known: Mapping[str, tuple[str, Callable[[Any], bool]]],
    required: Sequence[str],
    problems: list[str],
) -> None:
    """Add a problem for every key that is unknown, missing or has a value of another sort."""
    for key, value in table.items():
        if key not in known:
            problems.append(f"{path}{key}: no such key{did_you_mean(key, known)}")
        elif not known[key][1](value):
            problems.append(f"{path}{key}: {value!r} is not {known[key][0]}")
    problems.extend(f"{path}{key}: missing" for key in required if key not in table)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(check, value))


def _is_pattern(value: Any) -> bool:
    fields = re.findall(r"\{(.*?)\}", value) if isinstance(value, str) else []
    known = {field for field in fields if "," not in field} <= {"name", "split"}
    return fields.count("name") == 1 and known


def _is_kept(value: Any) -> bool:
    if isinstance(value, dict):
        share, seed = value.get("fraction"), value.get("seed", 0)
        known = value.keys() <= {"fraction", "seed"} and type(seed) is int
        return known and isinstance(share, float) and 0 < share < 1
    return _is_text(value)


_NUMBERS = (
    "a number, or a list of one per channel",
    lambda value: _is_number(value) or _is_list(value, _is_number),
)
_PATTERN = (
    "a path with {name} once, {split} where it depends on that, {jpg,png} where it is one of these",
    _is_pattern,
)
_TOP_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "size": (
        "[height, width] in pixels",
        lambda value: _is_list(value, _is_positive) and len(value) == 2,
    ),
    "image": _PATTERN,
    "names": ("a path, with {split}", _is_text),
    "encoding": ('the name of an encoding, such as "cp1252"', _is_text),
    "val": (
        "{fraction = 0.2, seed = 0} with a fraction between 0 and 1, or the path of a list",
        _is_kept,
    ),
    "tasks": (
        "a table with an entry per task",
        lambda value: isinstance(value, dict) and value != {},
    ),
}
_LABEL_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "kind": ("the name of a kind of task", _is_text),
    "file": _PATTERN,
    "classes": ("a list of class names", lambda value: _is_list(value, _is_text)),
    "channels": ("a whole number from 1", _is_positive),
    "scale": _NUMBERS,
    "offset": _NUMBERS,
    "invalid": ("a value, or a list of values", lambda value: value not in ("", [])),
    "values": (
        'a table such as {7 = "road", 8 = "sidewalk"}',
        lambda value: isinstance(value, dict) and value != {},
    ),
    "unit": ("a text", _is_text),
}
