"""Own photographs: a directory per kind of label, and a `dataset.toml` that says how to read them.

    size = [96, 128]                      # height, width for the network; default: the images' own
    image = "{split}/rgb/{name}.png"      # 8-bit PNG, JPEG or .npy
    names = "{split}.txt"                 # one name per line; default: every image there is

    [tasks.depth]                         # the task's name
    kind = "depth"
    file = "{split}/depth/{name}.png"     # 8 or 16-bit PNG, or .npy; where there is none, no label
    scale = 0.001                         # value = raw * scale + offset, one number or one each
    offset = 0                            #   per channel
    invalid = 0                           # raw value of pixels without a label, or one per channel
    unit = "m"

A segmentation has `classes = ["name", ...]` or `channels`, and only a whole `offset`. Kinds that
mtlcore does not know are float maps and need `channels`. Normals are scaled to unit length; they
are expected in the camera's frame: x right, y down, z forward, facing the camera.
"""

from __future__ import annotations

import re
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.errors import ConfigError, UsageError, did_you_mean
from mtlcore.loading import MissingFile, Root, decode_image, decode_label, unit_normals
from mtlcore.tasks import Task

_CHANNELS = {"depth": 1, "normals": 3, "edges": 1}


@attrs.frozen(kw_only=True)
class _Label:
    """How one task's files are read; numbers per channel are shaped (C, 1, 1)."""

    task: Task
    file: str
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]
    invalid: NDArray[np.float64] | None


@attrs.frozen(kw_only=True)
class _Spec:
    image: str
    labels: tuple[_Label, ...]
    names: str | None
    size: tuple[int, int] | None


@final
class Folder(Dataset):
    """Photographs with dense labels, described by a small TOML file.

    Args:
        root: the folder with the files, a local path or an fsspec URL.
        split: what `{split}` stands for in the patterns, usually "train" or "val".
        spec: the description: a path inside the root, else one of its own (relative to the working
            directory, absolute, or a URL).

    Raises:
        UsageError: there is no root.
        ConfigError: the description is missing or wrong; every problem with its file and key.
        DataError: the split has no images.
    """

    def __init__(self, root: str | None, split: str, *, spec: str = "dataset.toml") -> None:
        self._root = _open_root(root)
        self._split = split
        self._spec = _load_spec(self._root, spec)
        self._names = _list_names(self._root, self._spec, split)
        self._warn_of_absent_labels()
        self._warn_of_lost_labels()

    @classmethod
    def describe(
        cls, root: str | None, *, spec: str = "dataset.toml", **settings: Any
    ) -> tuple[Task, ...]:
        """The tasks of the description, in its order."""
        return tuple(label.task for label in _load_spec(_open_root(root), spec).labels)

    @classmethod
    def default_size(
        cls, root: str | None, *, spec: str = "dataset.toml", **settings: Any
    ) -> tuple[int, int] | None:
        """The height and width the description asks for; None: the images' own."""
        return _load_spec(_open_root(root), spec).size

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """One photograph at its own size, with those labels that it has.

        Raises:
            DataError: a file is unreadable, or a label has another size than its image.
        """
        path = self._path(self._spec.image, self._names[index])
        key = self._root.where(path)
        inputs = decode_image(self._root.read_bytes(path), key)
        targets, valid, sources = {}, {}, {}
        for label in self._spec.labels:
            path = self._path(label.file, self._names[index])
            try:
                data = self._root.read_bytes(path)
            except MissingFile:
                continue
            where = self._root.where(path)
            planes = _planes(label.task, decode_label(data, where), where)
            if planes.shape[1:] != inputs.shape[1:]:
                raise DataError(
                    f"{where}: the label is {_by(planes.shape)} but its image {key} is "
                    f"{_by(inputs.shape)} (height x width)"
                )
            targets[label.task.name], valid[label.task.name] = _decode(label, planes)
            sources[label.task.name] = where
        return Sample(inputs=inputs, targets=targets, valid=valid, key=key, sources=sources)

    def _path(self, pattern: str, name: str) -> str:
        return _fill(pattern, self._split).replace("{name}", name)

    def _warn_of_absent_labels(self) -> None:
        """A misspelt pattern would look like labels that were never made."""
        for label in self._spec.labels:
            paths = (self._path(label.file, name) for name in self._names)
            if not any(map(self._root.exists, paths)):
                warnings.warn(
                    f"{self._root.root}: no image of split {self._split!r} has a label of task "
                    f"{label.task.name!r} ({label.file})",
                    stacklevel=3,
                )

    def _warn_of_lost_labels(self) -> None:
        """A label whose file is named otherwise than its image would count as never made."""
        image, labels = self._spec.image, self._spec.labels
        # A list of names may leave images out, whose labels are not lost.
        names = self._names if self._spec.names is None else self._listed(image)
        read = {self._path(p, name) for p in (image, *(x.file for x in labels)) for name in names}
        for label in labels:
            if not names or ("{split}" in image and "{split}" not in label.file):
                continue  # nothing to compare with, or labels of all splits lie together
            files = [self._path(label.file, name) for name in self._listed(label.file)]
            lost = [file for file in files if file not in read]
            if lost:
                others = f" ({len(lost)} such files)" if len(lost) > 1 else ""
                warnings.warn(
                    f"{self._root.where(lost[0])}: a label of task {label.task.name!r} without an "
                    f"image of its name{others}",
                    stacklevel=3,
                )

    def _listed(self, pattern: str) -> list[str]:
        try:
            return _names_in(self._root, _fill(pattern, self._split))
        except DataError:  # files can be read from places that cannot be listed
            return []


def _open_root(root: str | None) -> Root:
    if root is None:
        raise UsageError("data.root: folder reads files; give the folder they lie in")
    return Root(root)


# ---------------------------------------------------------------------------- reading a sample


def _list_names(root: Root, spec: _Spec, split: str) -> list[str]:
    if spec.names is not None:
        lines = root.read_bytes(_fill(spec.names, split)).decode().splitlines()
        names = [line.strip() for line in lines if line.strip()]
    else:
        names = _names_in(root, _fill(spec.image, split))
    if not names:
        raise DataError(f"{root.where(_fill(spec.names or spec.image, split))}: no images found")
    return names


def _names_in(root: Root, pattern: str) -> list[str]:
    """What stands for `{name}` in a pattern, by the entries of the directory it is in."""
    before, _, after = pattern.partition("{name}")
    directory, _, prefix = before.rpartition("/")
    suffix = after.partition("/")[0]
    entry = re.compile(re.escape(prefix) + "(.+)" + re.escape(suffix))
    matches = map(entry.fullmatch, root.list(directory))
    # Hidden files are no images: archives made on a Mac hold a "._x.png" beside every "x.png".
    return [match[1] for match in matches if match and not match[0].startswith(".")]


def _fill(pattern: str, split: str) -> str:
    return pattern.replace("{split}", split)


def _by(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]}"


def _planes(task: Task, raw: NDArray[Any], where: str) -> NDArray[Any]:
    """A label's raw values as (C, H, W), a view; C is 1 where the target holds class numbers."""
    planes = raw[None] if raw.ndim == 2 else raw.transpose(2, 0, 1)
    expected = 1 if task.dtype == "int64" else task.channels
    if planes.shape[0] != expected:
        raise DataError(
            f"{where}: has {planes.shape[0]} channel(s) where task {task.name!r} needs {expected}"
        )
    return planes


def _decode(label: _Label, planes: NDArray[Any]) -> tuple[Tensor, Tensor]:
    valid = _known(label.invalid, planes)
    if label.task.dtype == "int64":
        classes = planes[0].astype(np.int64) + int(label.offset[0, 0, 0])
        return torch.from_numpy(classes), torch.from_numpy(valid)
    values = np.multiply(planes, label.scale, dtype=np.float32, order="C")
    values += label.offset
    if label.task.kind == "normals":
        valid &= unit_normals(values)
    return torch.from_numpy(values), torch.from_numpy(valid)


def _known(invalid: NDArray[np.float64] | None, planes: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W): a pixel has no label where every channel holds its invalid value."""
    if invalid is None:
        return np.ones(planes.shape[1:], dtype=np.bool_)
    known = np.zeros(planes.shape[1:], dtype=np.bool_)
    for plane, value in zip(planes, invalid[:, 0, 0].tolist(), strict=True):
        known |= ~np.isnan(plane) if np.isnan(value) else plane != value
    return known


# ------------------------------------------------------------------- reading the description


def _load_spec(root: Root, spec: str) -> _Spec:
    where, data = _read_spec(root, spec)
    try:
        table = tomllib.loads(data.decode())
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError([f"{where}: {error}"]) from error
    problems: list[str] = []
    parsed = _parse(table, problems)
    if problems or parsed is None:
        raise ConfigError(f"{where}: {problem}" for problem in problems)
    return parsed


def _read_spec(root: Root, spec: str) -> tuple[str, bytes]:
    # The root comes first: a dataset.toml that happens to lie in the working directory must not
    # describe another folder's files.
    own_path = "://" in spec or Path(spec).expanduser().is_absolute()
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


def _parse(table: dict[str, Any], problems: list[str]) -> _Spec | None:
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
    return _Spec(
        image=table["image"],
        labels=tuple(label for label in labels if label is not None),
        names=table.get("names"),
        size=tuple(table["size"]) if "size" in table else None,
    )


def _parse_label(name: str, entry: Any, problems: list[str]) -> _Label | None:
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
        return _Label(
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
    """The number or numbers of a key as (C, 1, 1)."""
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
