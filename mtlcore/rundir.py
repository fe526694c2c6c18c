"""The directory of a run: what is in it, and how it survives being interrupted.

DIR may be an fsspec URL: a run writes to a local directory and uploads it at checkpoints, because
object stores can neither append nor rename.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

import mtlcore
from mtlcore.config import RunConfig
from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.plugins import Plugins

LAST, BEST = "checkpoints/last.safetensors", "checkpoints/best.safetensors"


class RunDirectory:
    """Files of one run.

    Args:
        location: a path, or an fsspec URL.
        resume: go on with what is there; without it, a directory with anything in it is refused.

    Attributes:
        path: the local directory.

    Raises:
        UsageError: the directory is not empty, or cannot be written.
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
        if self._remote:
            self._temporary = tempfile.TemporaryDirectory(prefix="mtl-run-")
            self._download(there)
        self.path = Path(self._temporary.name if self._temporary else location)
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
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
        self.write_text(name, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file whole or not at all."""
        partial = self.path / (name + ".partial")
        try:
            partial.write_text(text, "utf-8")
            os.replace(partial, self.path / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise MtlError(f"{self.path / name}: cannot be written ({describe(error)})") from error

    def write_config(self, config: RunConfig) -> None:
        """The complete configuration; `mtl run DIR/config.toml` repeats the run."""
        import tomli_w

        self.write_text("config.toml", tomli_w.dumps(dict(config.tree)))

    # metrics.jsonl

    def open_metrics(self, length: int) -> None:
        """Cut metrics.jsonl back to its length at the checkpoint and append from there."""
        file = self.path / "metrics.jsonl"
        self._metrics = file.open("a", encoding="utf-8")
        self._metrics.truncate(length)
        self._metrics.seek(0, os.SEEK_END)

    def record(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append values to metrics.jsonl, one line each."""
        assert self._metrics is not None
        for line in lines:
            self._metrics.write(json.dumps(_finite(line), allow_nan=False) + "\n")

    def metrics_length(self) -> int:
        """Bytes of metrics.jsonl, all of them on the disk."""
        assert self._metrics is not None
        try:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise MtlError(
                f"{self.path / 'metrics.jsonl'}: cannot be written ({describe(error)})"
            ) from error
        return (self.path / "metrics.jsonl").stat().st_size

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Every value recorded so far."""
        if self._metrics is not None:
            self._metrics.flush()
        with (self.path / "metrics.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def close(self) -> None:
        """Close files; upload what is there and forget the local copy of a remote run."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        self.upload()
        if self._temporary is not None:
            self._temporary.cleanup()

    # Remote runs

    def upload(self) -> None:
        """Bring the remote copy up to date; nothing to do for a local run."""
        if not self._remote:
            return
        import fsspec

        if self._metrics is not None:
            self._metrics.flush()
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
            return filesystem.find(root) if found and self._remote else found
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


def next_directory(method: str) -> str:
    """`runs/<method>-<n>` with the first number that is free."""
    number = 1
    while Path("runs", f"{method}-{number}").exists():
        number += 1
    return f"runs/{method}-{number}"


def provenance(plugins: Plugins, config: RunConfig, device: torch.device) -> dict[str, Any]:
    """What run.json tells of how the run came about."""
    import platform

    return {
        "argv": sys.argv,
        "mtlcore": mtlcore.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "plugins": {
            info.id: f"{info.distribution} {info.version}".strip()
            for info in plugins.infos
            if info.status == "ok"
        },
        "method": config.method,
        "seed": config.seed,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def _finite(value: Any) -> Any:
    """JSON knows no NaN: null stands for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
