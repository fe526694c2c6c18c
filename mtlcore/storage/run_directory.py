"""Writing a run's directory so that it survives being interrupted.

The directory may be an fsspec URL: a run writes to a local directory and uploads it at checkpoints,
because object stores can neither append nor rename. One process writes it at a time (`claims`).
Reading is in `run_files`.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.storage.checkpoints import save_checkpoint, written_whole
from mtlcore.storage.claims import LOCK, Claim, LocalClaim, NoClaim, RemoteClaim
from mtlcore.storage.json_values import without_nan
from mtlcore.storage.loggers import Loggers
from mtlcore.storage.run_files import METRICS, SUMMARY, Record, RunFiles, read_json
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
        goes_on: Write there although the run is finished: it is given another length.

    Attributes:
        path: The local directory.
        loggers: What is told of every line of metrics.jsonl.
        taken_from: The process that this one follows in writing the directory, although nothing
            says that it has ended; None: there is none.

    Raises:
        UsageError: The directory is not empty, holds something other than a run, leads out of
            itself, is being written by another process, or cannot be written.
    """

    def __init__(self, location: str, resume: bool, goes_on: bool = False) -> None:
        self.location, self.goes_on = location, goes_on
        self._remote = "://" in location
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._metrics: IO[str] | None = None
        self.loggers = Loggers()
        existing = self._checked_files(resume)
        self.taken_from: str | None = None
        self._claim = self._claimed(existing)
        try:
            # Another process may have begun between the look and the claim.
            existing = self._checked_files(resume)
            if existing:
                take_stop_request(location)  # it was for an earlier start
                existing = [name for name in existing if _name(name) != STOP]
            if self._remote:
                self._temporary = tempfile.TemporaryDirectory(prefix="mtl-run-")
                self._download(existing)
            self.path = Path(self._temporary.name if self._temporary else location)
            self._prepare()
        except BaseException:
            self._let_go()
            raise

    def _checked_files(self, resume: bool) -> list[str]:
        """Return paths of what the location holds already; refuse what is not to be written."""
        location = self.location
        existing = self._existing_files()
        if existing and not resume:
            raise UsageError(
                f"{location}: is not empty; choose another --out, or go on with it by --resume"
            )
        if existing and not any(_FIRST_FILES & set(Path(name).parts) for name in existing):
            raise UsageError(f"{location}: is not empty and holds no run; choose another --out")
        if existing and not self._remote:
            _refuse_ways_out(Path(location))
        return existing

    def _claimed(self, existing: Iterable[str]) -> Claim:
        if SUMMARY in map(_name, existing) and not self.goes_on:
            return NoClaim()  # a finished run may lie where nothing can be written
        if self._remote:
            claim = RemoteClaim(self.location)
            self.taken_from = claim.before
            return claim
        try:
            Path(self.location).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error
        return LocalClaim(self.location)

    def _prepare(self) -> None:
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            # What a killed process was writing when it ended; nobody else's files.
            for pattern in _LEFT_OVER:
                for partial in self.path.glob(pattern):
                    partial.unlink()
        except OSError as error:
            raise self._not_writable(error) from error

    def _not_writable(self, error: OSError) -> UsageError:
        return UsageError(f"{self.location}: cannot be written ({error.strerror})")

    @property
    def checkpoint(self) -> Path:
        """The place of the last checkpoint, whether there is one or not."""
        return self.path / LAST

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, such as `LAST`, atomically.

        Raises:
            MtlError: The directory is gone or another process's, or the file cannot be written.
        """
        self._claim.check()
        save_checkpoint(self.path / name, state)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file of the run as it was written, None where it is missing."""
        return read_json(str(self.path / name), dict[str, Any])

    def begin_again(self) -> None:
        """Let a finished run count as one that is not.

        Raises:
            MtlError: Its summary cannot be removed.
        """
        import fsspec

        try:
            (self.path / SUMMARY).unlink(missing_ok=True)
            if self._remote:
                filesystem, root = fsspec.core.url_to_fs(self.location)
                if filesystem.exists(f"{root}/{SUMMARY}"):
                    filesystem.rm_file(f"{root}/{SUMMARY}")
        except OSError as error:
            raise self._unwritten(SUMMARY, error) from error

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
            return os.fstat(self._metrics.fileno()).st_size
        except OSError as error:
            raise self._unwritten(METRICS, error) from error

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
        try:
            self.upload()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._claim.release()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _unwritten(self, name: str, error: OSError) -> MtlError:
        return MtlError(f"{self.path / name}: cannot be written ({describe(error)})")

    # Remote runs

    def upload(self) -> None:
        """Bring the remote copy up to date; for a local run, do nothing.

        Raises:
            MtlError: The upload fails, or another process has taken the run over.
        """
        if not self._remote or isinstance(self._claim, NoClaim):
            return
        self._claim.check()
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
                names = filesystem.find(root) if names else []
            else:
                # A run that failed before it began leaves an empty directory behind.
                names = [name for name in names if not _is_empty(Path(name))]
            return [name for name in names if _name(name) != LOCK]
        except (ImportError, ValueError, OSError) as error:
            raise UsageError(f"{self.location}: cannot be opened ({describe(error)})") from error

    def _download(self, names: Iterable[str]) -> None:
        import fsspec

        assert self._temporary is not None
        filesystem, root = fsspec.core.url_to_fs(self.location)
        folder = Path(self._temporary.name).resolve()
        for name in names:
            relative = name.removeprefix(root).lstrip("/")
            file = (folder / relative).resolve()
            if not file.is_relative_to(folder):  # an archive may name anything
                raise UsageError(
                    f"{self.location}: holds {relative!r}, which leads out of the run's directory; "
                    "nothing of it is read"
                )
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
    """Create `runs/<method>-<n>` with the first free number, and return it.

    Raises:
        UsageError: It cannot be created.
    """
    try:
        Path("runs").mkdir(exist_ok=True)
        for number in itertools.count(1):
            folder = Path("runs", f"{method}-{number}")
            # Of several processes that try at once, one succeeds.
            with suppress(FileExistsError):
                folder.mkdir()
                return folder.as_posix()
    except OSError as error:
        raise UsageError(
            f"runs: no directory for the run can be made there ({describe(error)}); name one by "
            "--out"
        ) from error
    raise AssertionError("numbers do not end")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _refuse_ways_out(folder: Path) -> None:
    """Refuse symbolic links by which writing the run would write somewhere else.

    The directory itself may be one: its user named it.

    Raises:
        UsageError: There is one that leads out of the directory.
    """
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise UsageError(
                    f"{path}: is a symbolic link that leads out of the run's directory; put what "
                    "it leads to in its place"
                )
