"""The `dataset.toml` of a folder of photographs: how it is read and checked."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mtlcore.errors import ConfigError, did_you_mean
from mtlcore.loading import MissingFile, Root
from mtlcore.tasks import Task

_CHANNELS = {"depth": 1, "normals": 3, "edges": 1}


@attrs.frozen(kw_only=True)
class LabelFiles:
    """How one task's files are read; numbers per channel are shaped (C, 1, 1)."""

    task: Task
    file: str
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]
    invalid: NDArray[np.float64] | None


@attrs.frozen(kw_only=True)
class Description:
    """What a `dataset.toml` says."""

    image: str
    labels: tuple[LabelFiles, ...]
    names: str | None
    size: tuple[int, int] | None


def load_description(root: Root, spec: str) -> Description:
    where, data = _read(root, spec)
    try:
        table = tomllib.loads(data.decode())
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError([f"{where}: {error}"]) from error
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


def _parse(table: dict[str, Any], problems: list[str]) -> Description | None:
    _check(table, "", _TOP_KEYS, ("image", "tasks"), problems)
    tasks = table.get("tasks")
    labels = (
        [_parse_label(name, entry, problems) for name, entry in tasks.items()]
        if isinstance(tasks, dict)
        else []
    )
    if problems:
        return None
    if "{split}" not in table["image"] + table.get("names", ""):
        problems.append("image: has no {split}, so that training and validation would be the same")
    return Description(
        image=table["image"],
        labels=tuple(label for label in labels if label is not None),
        names=table.get("names"),
        size=tuple(table["size"]) if "size" in table else None,
    )


def _parse_label(name: str, entry: Any, problems: list[str]) -> LabelFiles | None:
    path = f"tasks.{name}"
    if not isinstance(entry, dict):
        problems.append(f"{path}: must be a table, [{path}]")
        return None
    before = len(problems)
    _check(entry, f"{path}.", _LABEL_KEYS, ("kind", "file"), problems)
    if len(problems) > before:
        return None
    kind, classes = entry["kind"], tuple(entry.get("classes", ()))
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
        return LabelFiles(
            task=task,
            file=entry["file"],
            scale=_per_channel(entry, "scale", 1.0, task).astype(np.float32),
            offset=_per_channel(entry, "offset", 0.0, task).astype(np.float32),
            invalid=_per_channel(entry, "invalid", 0.0, task) if "invalid" in entry else None,
        )
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None


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
    return fields.count("name") == 1 and set(fields) <= {"name", "split"}


_NUMBERS = (
    "a number, or a list of one per channel",
    lambda value: _is_number(value) or _is_list(value, _is_number),
)
_PATTERN = ("a path with {name} once, and {split} where it depends on that", _is_pattern)
_TOP_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "size": (
        "[height, width] in pixels",
        lambda value: _is_list(value, _is_positive) and len(value) == 2,
    ),
    "image": _PATTERN,
    "names": ("a path, with {split}", _is_text),
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
    "invalid": _NUMBERS,
    "unit": ("a text", _is_text),
}
