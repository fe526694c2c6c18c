"""Reading a run's directory: local or at a URL, of a run that is finished or still goes on."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast, final

import attrs

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.storage.json_values import or_nan, with_nan
from mtlcore.storage.reading import checked, decoded
from mtlcore.storage.schemas import MetricsLine, Provenance, SampleIndex, StoredConfig, Summary

_T = TypeVar("_T")

CONFIG, PROVENANCE, SUMMARY = "config.toml", "run.json", "summary.json"
METRICS = "metrics.jsonl"
_PNG = b"\x89PNG\r\n\x1a\n"
SAMPLES = "report/samples"

#: A line of metrics.jsonl: step, epoch, split, task, metric, value, seconds.
Record = Mapping[str, Any]


@final
@attrs.frozen(kw_only=True)
class SamplePictures:
    """The pictures of one sample.

    Args:
        key: Where the sample comes from.
        pictures: "input", "depth.prediction", "depth.target", ... -> data URI.
        scales: Task -> values of the lowest and the highest colour.
    """

    key: str
    pictures: Mapping[str, str]
    scales: Mapping[str, tuple[float, float]]


@final
@attrs.frozen(kw_only=True)
class Pictures:
    """The pictures in `report/samples` of a run.

    Args:
        samples: The samples, in order.
        classes: Task -> class -> its colour, such as "#87ff77".
        units: Task -> unit, empty where it has none.
    """

    samples: tuple[SamplePictures, ...]
    classes: Mapping[str, Mapping[str, str]]
    units: Mapping[str, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have maps."""
        return tuple(self.units)


@final
@attrs.define(slots=False)
class RunFiles:
    """The files of a run, each read when first asked for.

    Every property raises `UsageError` where a file cannot be read and `MtlError` where it is
    damaged.

    Args:
        location: Path or fsspec URL of the directory.
    """

    location: str

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The complete configuration, `config.toml`.

        Raises:
            UsageError: There is none, so that there is no run.
        """
        config = stored_config(self.location)
        if config is None:
            raise UsageError(f"{self.location}: is neither a run (it has no {CONFIG}) nor a study")
        checked(config, StoredConfig, f"{self.location}/{CONFIG}")
        return config

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """How the run came about and what became of it, `run.json`; empty without the file."""
        return _json_of(self.location, PROVENANCE, Provenance) or {}

    @cached_property
    def summary(self) -> Mapping[str, Any] | None:
        """The results, `summary.json`, with NaN for metrics that are null; None until the end."""
        content = _json_of(self.location, SUMMARY, Summary)
        if content is None:
            return None
        summary = cast(dict[str, Any], content)
        if content["final_split"] not in content["final"]:
            raise MtlError(
                f"{self.location}/{SUMMARY}: final_split is {content['final_split']!r}, and final "
                f"has {', '.join(content['final']) or 'nothing'}"
            )
        for table, key in ((summary, "final"), (summary, "constants"), (summary["best"], "val")):
            if key in table:
                table[key] = with_nan(table[key])
        return summary

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The whole lines of `metrics.jsonl`, with NaN for values that are null.

        Raises:
            MtlError: A finished run lacks the file.
        """
        place = f"{self.location}/{METRICS}"
        content = _read_of(self.location, METRICS)
        if content is None:
            if self.summary is not None:
                raise MtlError(f"{place}: is missing")
            return ()
        lines = content.split(b"\n")
        if self.summary is None:
            lines.pop()  # the run may be in the middle of writing it
        try:
            tree = [decoded(line, "JSON") for line in lines if line]
        except ValueError as error:
            raise MtlError(f"{place}: not JSON lines ({error})") from error
        records = checked(tree, list[MetricsLine], place)
        return tuple({**record, "value": or_nan(record["value"])} for record in records)

    @cached_property
    def pictures(self) -> Pictures | None:
        """The pictures of samples; None where the run wrote none."""
        index = _json_of(self.location, f"{SAMPLES}/index.json", SampleIndex)
        if index is None:
            return None
        samples = [
            SamplePictures(
                key=sample["key"],
                pictures={
                    name: _data_uri(self.location, file)
                    for name, file in sample["pictures"].items()
                },
                scales={task: (low, high) for task, (low, high) in sample["scales"].items()},
            )
            for sample in index["samples"]
        ]
        return Pictures(
            samples=tuple(samples),
            classes={task: about["classes"] for task, about in index["tasks"].items()},
            units={task: about["unit"] for task, about in index["tasks"].items()},
        )


def open_run(location: str) -> RunFiles:
    """Return the files of the run at a path or URL.

    Raises:
        UsageError: There is no run, or it cannot be read.
        MtlError: Its configuration is damaged.
    """
    files = RunFiles(location.rstrip("/"))
    _ = files.config  # is there one?
    return files


def stored_config(location: str) -> Mapping[str, Any] | None:
    """Return the configuration in a run's directory, None where there is none.

    Raises:
        UsageError: It cannot be read.
        MtlError: It is damaged.
    """
    place = f"{location}/{CONFIG}"
    content = _read_of(location, CONFIG)
    try:
        return None if content is None else cast(dict[str, Any], decoded(content, "TOML"))
    except ValueError as error:
        raise MtlError(f"{place}: not TOML ({error})") from error


def read(place: str) -> bytes | None:
    """Return the content of a file at a path or URL, None where there is none.

    Raises:
        UsageError: It cannot be read.
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


def read_json(place: str, schema: type[_T]) -> _T | None:
    """Return the content of a JSON file at a path or URL, None where there is no file.

    Args:
        place: The path or URL.
        schema: What it holds.

    Raises:
        UsageError: It cannot be read.
        MtlError: It is damaged.
    """
    content = read(place)
    return None if content is None else _tree_of(place, content, schema)


def _tree_of(place: str, content: bytes, schema: type[_T]) -> _T:
    try:
        tree = decoded(content, "JSON")
    except ValueError as error:
        raise MtlError(f"{place}: not JSON ({error})") from error
    return checked(tree, schema, place)


def report_pictures(folder: Path) -> tuple[Path, ...]:
    """Return the files of `report/` in a local run directory that are pictures, in order.

    Raises:
        MtlError: One is a symbolic link out of the directory.
    """
    found = sorted((folder / "report").rglob("*"))
    pictures = [file for file in found if file.suffix in (".png", ".svg", ".jpg")]
    return tuple(
        Path(place_inside(str(folder), file.relative_to(folder).as_posix())) for file in pictures
    )


def place_inside(location: str, name: str) -> str:
    """Return the place of something in the directory of a run or a study, which may be anybody's.

    Raises:
        MtlError: Its name or a symbolic link leads out of the directory.
    """
    place = f"{location.rstrip('/')}/{name}"
    leads_out = ".." in name.split("/")
    if "://" not in location:
        folder, file = Path(location).resolve(), Path(place).resolve()
        leads_out |= not file.is_relative_to(folder)
    if leads_out:
        raise MtlError(
            f"{place}: leads out of the directory {location}; nothing is read or written there"
        )
    return place


def _read_of(location: str, name: str) -> bytes | None:
    """Return the content of a file of a run, None where there is none.

    Raises:
        UsageError: It cannot be read.
        MtlError: A symbolic link leads out of the run's directory.
    """
    return read(place_inside(location, name))


def _json_of(location: str, name: str, schema: type[_T]) -> _T | None:
    content = _read_of(location, name)
    return None if content is None else _tree_of(f"{location}/{name}", content, schema)


def _data_uri(location: str, file: Any) -> str:
    """Return a picture as text; only a PNG beside the index is taken for one."""
    name = f"{SAMPLES}/{file}"
    if not isinstance(file, str) or "/" in file or "\\" in file or file in ("", ".", ".."):
        raise MtlError(
            f"{location}/{SAMPLES}/index.json: names the picture {file!r}, which is none beside it"
        )
    content = _read_of(location, name)
    if content is None:
        raise MtlError(f"{location}/{name}: is missing")
    if not content.startswith(_PNG):
        raise MtlError(f"{location}/{name}: is no PNG picture")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
