"""The directory of a run: what is in it, and how it survives being interrupted.

DIR may be an fsspec URL: a run writes to a local directory and uploads it at checkpoints, because
object stores can neither append nor rename.
"""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.storage.checkpoints import written_whole
from mtlcore.storage.json_values import without_nan

LAST, BEST = "checkpoints/last.safetensors", "checkpoints/best.safetensors"
METRICS = "metrics.jsonl"
# Of these a run has one as soon as it has anything.
_FIRST_FILES = {METRICS, "config.toml", "config.toml.partial", "checkpoints"}
_LEFT_OVER = (
    "*.json.partial",
    "config.toml.partial",
    "checkpoints/*.safetensors.partial",
    "report/*.png.partial",
    "report/samples/*.partial",
)


class RunDirectory:
    """Files of one run.

    Args:
        location: a path, or an fsspec URL.
        resume: go on with what is there; without it, a directory with anything in it is refused.

    Attributes:
        path: the local directory.

    Raises:
        UsageError: the directory is not empty or holds something else, or cannot be written.
    """

    def __init__(self, location: str, resume: bool) -> None:
        self.location = location
        self._remote = "://" in location
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._metrics: IO[str] | None = None
        there = self._files_there()
        if there and not resume:
            raise UsageError(
                f"{location}: is not empty; choose another --out, or go on with it by --resume"
            )
        if there and not any(_FIRST_FILES & set(Path(name).parts) for name in there):
            raise UsageError(f"{location}: is not empty and holds no run; choose another --out")
        if self._remote:
            self._temporary = tempfile.TemporaryDirectory(prefix="mtl-run-")
            self._download(there)
        self.path = Path(self._temporary.name if self._temporary else location)
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            # What a killed process was about to write when it ended; nobody else's files.
            for left in (found for pattern in _LEFT_OVER for found in self.path.glob(pattern)):
                left.unlink()
        except OSError as error:
            raise UsageError(f"{location}: cannot be written ({error.strerror})") from error

    @property
    def checkpoint(self) -> Path:
        """Where the last checkpoint is, if there is one."""
        return self.path / LAST

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run, or None where it is missing."""
        file = self.path / name
        if not file.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise MtlError(f"{file}: not JSON ({error})") from error
        return content

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all; NaN becomes null."""
        self.write_text(name, json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        try:
            with written_whole(self.path / name) as partial:
                partial.write_text(text, "utf-8")
        except OSError as error:
            raise self._unwritten(name, error) from error

    def write_config(self, tree: Mapping[str, Any]) -> None:
        """The complete configuration; `mtl run DIR/config.toml` repeats the run."""
        import tomli_w

        self.write_text("config.toml", tomli_w.dumps(dict(tree)))

    # metrics.jsonl

    def open_metrics(self, length: int) -> None:
        """Cut metrics.jsonl back to its length at the checkpoint and append from there.

        Raises:
            MtlError: it is shorter than that, or cannot be written.
        """
        file = self.path / METRICS
        try:
            self._metrics = file.open("a", encoding="utf-8")
            found = file.stat().st_size
            if found >= length:
                self._metrics.truncate(length)
                self._metrics.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._unwritten(METRICS, error) from error
        if found < length:
            raise MtlError(
                f"{file}: has {found} bytes and had {length} at the checkpoint: part of it is "
                "lost; put the file back, or start a run of its own with another --out"
            )

    def record(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append values to metrics.jsonl, one line each."""
        assert self._metrics is not None
        texts = [json.dumps(without_nan(line), allow_nan=False) + "\n" for line in lines]
        try:
            self._metrics.writelines(texts)
        except OSError as error:
            raise self._unwritten(METRICS, error) from error

    def metrics_length(self) -> int:
        """Bytes of metrics.jsonl, all of them on the disk."""
        assert self._metrics is not None
        try:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise self._unwritten(METRICS, error) from error
        return (self.path / METRICS).stat().st_size

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Every value recorded so far."""
        if self._metrics is not None:
            self._metrics.flush()
        with (self.path / METRICS).open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def close(self) -> None:
        """Close files; upload what is there and forget the local copy of a remote run."""
        if self._metrics is not None:
            # What a checkpoint counts on was flushed with it: a full disk costs lines only that
            # going on would have cut off, and was told of where it was met first.
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
        """Bring the remote copy up to date; nothing to do for a local run.

        Raises:
            MtlError: the other side refuses.
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

    def _files_there(self) -> list[str]:
        """What the location holds already: paths for the file system that serves it."""
        import fsspec

        try:
            filesystem, root = fsspec.core.url_to_fs(self.location)
            found: list[str] = filesystem.ls(root, detail=False) if filesystem.isdir(root) else []
            if self._remote:
                return filesystem.find(root) if found else []
            # A run that failed before it began leaves an empty directory behind.
            return [name for name in found if not _is_empty(Path(name))]
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


def stored_config(location: str) -> Mapping[str, Any] | None:
    """The configuration in a run's directory, None where there is none.

    Raises:
        MtlError: it cannot be read.
        UsageError: the location is no place that can be opened.
    """
    import fsspec

    try:
        with fsspec.open(f"{location}/config.toml", "rb") as file:
            content = file.read().decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"{location}: cannot be opened ({describe(error)})") from error
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise MtlError(f"{location}/config.toml: not TOML: {error}") from error


def changed_settings(stored: Mapping[str, Any], tree: Mapping[str, Any]) -> list[str]:
    """The paths at which two configurations differ, sorted."""
    before, now = _flat(stored), _flat(tree)
    return sorted(path for path in {*before, *now} if before.get(path) != now.get(path))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(_flat(value, path + ".") if isinstance(value, Mapping) else {path: value})
    return flat


def next_directory(method: str) -> str:
    """`runs/<method>-<n>` with the first number that is free."""
    number = 1
    while Path("runs", f"{method}-{number}").exists():
        number += 1
    return f"runs/{method}-{number}"


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
