"""What a report needs of a run's directory, wherever that is and however far the run came."""

from __future__ import annotations

import base64
import json
import tomllib
from collections.abc import Mapping
from typing import Any, final

import attrs

from mtlcore.errors import MtlError, UsageError, describe

Row = Mapping[str, Any]  # a line of metrics.jsonl


@final
@attrs.frozen(kw_only=True)
class Sample:
    """The pictures of one sample.

    Args:
        key: where it comes from.
        pictures: "input", "depth.prediction", "depth.target", ... -> data URI.
        scales: task -> what its lowest and its highest colour stand for.
    """

    key: str
    pictures: Mapping[str, str]
    scales: Mapping[str, tuple[float, float]]


@final
@attrs.frozen(kw_only=True)
class Pictures:
    """What `report/samples` of a run holds.

    Args:
        samples: in order.
        classes: task -> class -> its colour, such as "#87ff77".
        units: task -> unit, empty where it has none.
    """

    samples: tuple[Sample, ...]
    classes: Mapping[str, Mapping[str, str]]
    units: Mapping[str, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have maps."""
        return tuple(self.units)


@final
@attrs.frozen(kw_only=True)
class RunFiles:
    """A run that may still go on.

    Args:
        location: path or URL of its directory.
        config: `config.toml`.
        about: `run.json`; empty where the run has none.
        summary: `summary.json`; None where the run is not finished.
        rows: the whole lines of `metrics.jsonl`.
        pictures: None where the run wrote none.
    """

    location: str
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    rows: tuple[Row, ...]
    pictures: Pictures | None


def read_files(location: str) -> RunFiles:
    """Everything of a run.

    Raises:
        UsageError: there is no run, or it cannot be opened.
        MtlError: one of its files is damaged.
    """
    location = location.rstrip("/")
    config = read(f"{location}/config.toml")
    if config is None:
        raise UsageError(f"{location}: is neither a run (it has no config.toml) nor a study")
    try:
        tree = tomllib.loads(config.decode())
    except ValueError as error:
        raise MtlError(f"{location}/config.toml: not TOML ({error})") from error
    return RunFiles(
        location=location,
        config=tree,
        about=_json(f"{location}/run.json") or {},
        summary=_json(f"{location}/summary.json"),
        rows=_rows(f"{location}/metrics.jsonl"),
        pictures=read_pictures(location),
    )


def read_pictures(location: str) -> Pictures | None:
    """The pictures of a run; None where it wrote none.

    Raises:
        MtlError: a picture that the index names is missing.
    """
    folder = f"{location}/report/samples"
    index = _json(f"{folder}/index.json")
    if index is None:
        return None
    return Pictures(
        samples=tuple(
            Sample(
                key=sample["key"],
                pictures={name: _uri(f"{folder}/{file}") for name, file in
                          sample["pictures"].items()},
                scales={task: (low, high) for task, (low, high) in sample["scales"].items()},
            )
            for sample in index["samples"]
        ),
        classes={task: about["classes"] for task, about in index["tasks"].items()},
        units={task: about["unit"] for task, about in index["tasks"].items()},
    )  # fmt: skip


def read(place: str) -> bytes | None:
    """A file at a path or URL; None where there is none.

    Raises:
        UsageError: it cannot be read.
    """
    import fsspec

    try:
        with fsspec.open(place, "rb") as file:
            content: bytes = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"{place}: cannot be read ({describe(error)})") from error
    return content


def _json(place: str) -> Any:
    content = read(place)
    try:
        return None if content is None else json.loads(content)
    except ValueError as error:
        raise MtlError(f"{place}: not JSON ({error})") from error


def _rows(place: str) -> tuple[Row, ...]:
    # A run that goes on may be in the midst of its last line.
    lines = (read(place) or b"").split(b"\n")[:-1]
    try:
        return tuple(json.loads(line) for line in lines)
    except ValueError as error:
        raise MtlError(f"{place}: not JSON lines ({error})") from error


def _uri(place: str) -> str:
    content = read(place)
    if content is None:
        raise MtlError(f"{place}: is missing")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
