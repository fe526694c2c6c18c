"""The directory of a run that has ended, for those who read all of it and may add files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.storage.claims import LOCK
from mtlcore.storage.run_files import SUMMARY
from mtlcore.system import HeldLock, LockHeld

#: What nobody needs who reads about a run, and what is large.
_LEFT_OUT = "checkpoints/"


@contextmanager
def ended_run(location: str) -> Iterator[Path]:
    """Yield the local directory of a run that nobody writes meanwhile.

    Of a run at a URL that is a copy without checkpoints; files that are new in it are uploaded.

    Args:
        location: Path or URL of the run.

    Raises:
        UsageError: A process is writing the run, or it cannot be read.
        MtlError: A new file cannot be uploaded.
    """
    if "://" in location:
        with tempfile.TemporaryDirectory(prefix="mtl-run-") as folder:
            yield from _copied(location, Path(folder))
    elif (Path(location) / SUMMARY).exists():
        yield Path(location)  # finished: it may lie where nothing can be written
    else:
        try:
            lock = HeldLock(Path(location) / LOCK)
        except LockHeld as error:
            raise UsageError(f"{location}: is being written by {error}; wait for its end") from None
        try:
            yield Path(location)
        finally:
            lock.release()


def _copied(location: str, folder: Path) -> Iterator[Path]:
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(location)
        for name in filesystem.find(root):
            relative = name.removeprefix(root).lstrip("/")
            if not relative.startswith(_LEFT_OUT):
                _copy(filesystem, name, folder, relative, location)
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"{location}: cannot be read ({describe(error)})") from error
    before = set(folder.rglob("*"))
    yield folder
    try:
        for file in sorted(set(folder.rglob("*")) - before):
            if file.is_file():
                target = f"{root}/{file.relative_to(folder).as_posix()}"
                filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
                filesystem.put_file(str(file), target)
    except Exception as error:  # a network's file system raises what its libraries raise
        raise MtlError(f"{location}: cannot be written ({describe(error)})") from error


def _copy(filesystem: Any, name: str, folder: Path, relative: str, location: str) -> None:
    file = (folder / relative).resolve()
    if not file.is_relative_to(folder.resolve()):  # an archive may name anything
        raise UsageError(
            f"{location}: holds {relative!r}, which leads out of the run's directory; nothing of "
            "it is read"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    filesystem.get_file(name, str(file))
