"""Writing a run's directory so that it survives being interrupted.

The directory may be an fsspec URL: a run writes to a local directory and uploads it at checkpoints,
because object stores can neither append nor rename. Reading is in `run_files`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.storage.checkpoints import written_whole
from mtlcore.storage.json_values import without_nan
from mtlcore.storage.loggers import Loggers
from mtlcore.storage.run_files import METRICS, Record, RunFiles, read_json
from mtlcore.storage.stop_requests import STOP, take_stop_request
from mtlcore.storage.trees import flatten

LAST, BEST = "checkpoints/last.safetensors", "checkpoints/best.safetensors"
# A run has one of these as soon as it has anything.
_FIRST_FILES = {METRICS, "config.toml", "config.toml.partial", "checkpoints"}
_LEFT_OVER = (
    "*.json.partial",
    "config.toml.partial",
    "checkpoints/*.safetensors.partial",
    "report/*.png.partial",
    "report/*.svg.partial",
    "report/samples/*.partial",
)


class RunDirectory:
    """The directory that a run writes.

    Args:
        location: A path, or an fsspec URL.
        resume: Go on with the run that is there. Otherwise a directory that is not empty is
            refused.

    Attributes:
        path: The local directory.
        loggers: What is told of every line of metrics.jsonl.

    Raises:
        UsageError: The directory is not empty, holds something other than a run, or cannot be
            written.
    """

    def __init__(self, location: str, resume: bool) -> None:
        self.location = location
        self._remote = "://" in location
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._metrics: IO[str] | None = None
        self.loggers = Loggers()
        existing = self._existing_files()
        if existing and not resume:
            raise UsageError(
                f"{location}: is not empty; choose another --out, or go on with it by --resume"
            )
        if existing and not any(_FIRST_FILES & set(Path(name).parts) for name in existing):
            raise UsageError(f"{location}: is not empty and holds no run; choose another --out")
        if existing:
            take_stop_request(location)  # it was for an earlier start
            existing = [name for name in existing if Path(name).name != STOP]
        if self._remote:
            self._temporary = tempfile.TemporaryDirectory(prefix="mtl-run-")
            self._download(existing)
        self.path = Path(self._temporary.name if self._temporary else location)
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            # What a killed process was writing when it ended; nobody else's files.
            for pattern in _LEFT_OVER:
                for partial in self.path.glob(pattern):
                    partial.unlink()
        except OSError as error:
            raise UsageError(f"{location}: cannot be written ({error.strerror})") from error

    @property
    def checkpoint(self) -> Path:
        """The place of the last checkpoint, whether there is one or not."""
        return self.path / LAST

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file of the run as it was written, None where it is missing."""
        return read_json(str(self.path / name), dict[str, Any])

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file atomically; NaN becomes null."""
        self.write_text(name, json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        try:
            with written_whole(self.path / name) as partial:
                partial.write_text(text, "utf-8")
        except OSError as error:
            raise self._unwritten(name, error) from error

    def write_config(self, tree: Mapping[str, Any]) -> None:
        """Write the complete configuration; `mtl run DIR/config.toml` repeats the run."""
        import tomli_w

        self.write_text("config.toml", tomli_w.dumps(dict(tree)))

    # metrics.jsonl

    def open_metrics(self, length: int) -> None:
        """Open metrics.jsonl for appending, cut back to its length at the checkpoint.

        Raises:
            MtlError: It is shorter than that, or cannot be written.
        """
        file = self.path / METRICS
        try:
            self._metrics = file.open("a", encoding="utf-8")
            size = file.stat().st_size
            if size >= length:
                self._metrics.truncate(length)
                self._metrics.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._unwritten(METRICS, error) from error
        if size < length:
            raise MtlError(
                f"{file}: has {size} bytes and had {length} at the checkpoint: part of it is "
                "lost; put the file back, or start a run of its own with another --out"
            )

    def record(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append records to metrics.jsonl, one line each; NaN becomes null. Tell the loggers."""
        assert self._metrics is not None
        lines = tuple(lines)
        texts = [json.dumps(without_nan(line), allow_nan=False) + "\n" for line in lines]
        try:
            self._metrics.writelines(texts)
        except OSError as error:
            raise self._unwritten(METRICS, error) from error
        self.loggers.record(lines)

    def metrics_length(self) -> int:
        """Flush metrics.jsonl to the disk and return its length in bytes."""
        assert self._metrics is not None
        try:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise self._unwritten(METRICS, error) from error
        return (self.path / METRICS).stat().st_size

    def metrics(self) -> tuple[Record, ...]:
        """Return every record so far, with NaN for null."""
        if self._metrics is not None:
            self._metrics.flush()
        return RunFiles(str(self.path)).records

    def close(self) -> None:
        """Close files; of a remote run, upload them and delete the local copy."""
        if self._metrics is not None:
            # Every checkpoint flushed its lines. A full disk loses only lines that resuming would
            # cut off, and it was reported where it was first met.
            with suppress(OSError):
                self._metrics.close()
            self._metrics = None
        self.upload()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _unwritten(self, name: str, error: OSError) -> MtlError:
        return MtlError(f"{self.path / name}: cannot be written ({describe(error)})")

    # Remote runs

    def upload(self) -> None:
        """Bring the remote copy up to date; for a local run, do nothing.

        Raises:
            MtlError: The upload fails.
        """
        if not self._remote:
            return
        if self._metrics is not None:
            self._metrics.flush()
        try:
            self._put_files()
        except Exception as error:  # a network's file system raises what its libraries raise
            raise MtlError(
                f"{self.location}: the run cannot be uploaded ({describe(error)}); what was "
                "uploaded before is there"
            ) from error

    def _put_files(self) -> None:
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.location)
        for file in sorted(self.path.rglob("*")):
            if file.is_file() and not file.name.endswith(".partial"):
                target = f"{root}/{file.relative_to(self.path).as_posix()}"
                filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
                filesystem.put_file(str(file), target)

    def _existing_files(self) -> list[str]:
        """Return paths of what the location holds already, for its file system."""
        import fsspec

        try:
            filesystem, root = fsspec.core.url_to_fs(self.location)
            if not filesystem.isdir(root):
                return []
            names: list[str] = filesystem.ls(root, detail=False)
            if self._remote:
                return filesystem.find(root) if names else []
            # A run that failed before it began leaves an empty directory behind.
            return [name for name in names if not _is_empty(Path(name))]
        except (ImportError, ValueError, OSError) as error:
            raise UsageError(f"{self.location}: cannot be opened ({describe(error)})") from error

    def _download(self, names: Iterable[str]) -> None:
        import fsspec

        assert self._temporary is not None
        filesystem, root = fsspec.core.url_to_fs(self.location)
        for name in names:
            file = Path(self._temporary.name) / name.removeprefix(root).lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(name, str(file))


def changed_settings(stored: Mapping[str, Any], tree: Mapping[str, Any]) -> list[str]:
    """Return the sorted paths at which two configurations differ."""
    before, now = flatten(plain_settings(stored)), flatten(plain_settings(tree))
    return sorted(path for path in {*before, *now} if not _same(before.get(path), now.get(path)))


def plain_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as JSON has it: dates, which TOML knows, are texts."""
    plain: dict[str, Any] = json.loads(json.dumps(tree, default=str))
    return plain


def _same(one: Any, other: Any) -> bool:
    """Return whether two settings are equal; a setting that is NaN is."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or (one != one and other != other)


def next_directory(method: str) -> str:
    """Return `runs/<method>-<n>` with the first free number."""
    number = 1
    while Path("runs", f"{method}-{number}").exists():
        number += 1
    return f"runs/{method}-{number}"


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
