"""File locks: one that processes started by its holder can share, and one that names its holder.

The kernel lets go of both when the last process that has them ends, whatever ended it: no lock is
ever stale.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

from mtlcore.errors import UsageError, describe


@contextmanager
def locked(file: Path, on_wait: Callable[[], None]) -> Iterator[int]:
    """Hold an exclusive lock on a file; yield its open file descriptor.

    A child process that inherits the descriptor holds the lock too, for as long as it lives.

    Args:
        file: Created if it does not exist, and never removed.
        on_wait: Called once if another process holds the lock, before waiting for it.

    Raises:
        UsageError: This platform has no such locks, or the file cannot be written.
    """
    try:
        import fcntl
    except ImportError as error:
        raise UsageError(
            f"{file}: cannot be locked: this platform has no fcntl, which a study needs. Use "
            "Linux, macOS or WSL, or train the runs one by one with mtl run"
        ) from error
    descriptor = _open(file)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # a file system that knows no locks
            raise UsageError(f"{file}: cannot be locked ({describe(error)})") from error
        yield descriptor
    finally:
        os.close(descriptor)


@final
class HeldLock:
    """An exclusive lock on a file, which says who holds it.

    Where this platform has no such locks, the file is written all the same, and nothing is locked;
    where the file system has none, a warning says so.

    Args:
        file: Created if it does not exist, and removed by `release`.

    Raises:
        UsageError: The file cannot be written.
        LockHeld: Another process holds it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        while True:
            self._descriptor = _open(file)
            try:
                self._lock()
            except BaseException:
                os.close(self._descriptor)
                raise
            # Its last holder may have removed the file after it was opened here.
            if self.is_held():
                break
            os.close(self._descriptor)
        _held.add(self._descriptor)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{this_process()}\n".encode())

    def is_held(self) -> bool:
        """Return whether the file is still the one that was locked: not deleted, not replaced."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._file))
        except OSError:
            return False

    def release(self) -> None:
        """Remove the file and let go of it; do nothing in a forked process, which never had it."""
        if self._descriptor not in _held:
            return
        _held.remove(self._descriptor)
        if self.is_held():
            with suppress(OSError):  # what stays behind is locked by nobody
                self._file.unlink()
        os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockHeld(_holder(self._file)) from error
        except OSError as error:
            warnings.warn(
                f"{self._file}: this file system has no locks ({describe(error)}): nothing keeps "
                "another process from writing there too",
                stacklevel=2,
            )


# The descriptors of all `HeldLock`s. Processes that load data are forked from the one that holds a
# lock: they must not hold it longer than that one lives.
_held: set[int] = set()


def _let_go_in_child() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


class LockHeld(Exception):
    """Another process holds a lock; the text says which."""


def this_process() -> str:
    """Return what others may know this process by: its number, its machine and the time."""
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"process {os.getpid()} on {socket.gethostname()}, since {now}"


def _holder(file: Path) -> str:
    try:
        text = file.read_text("utf-8", "replace").strip()
    except OSError:
        text = ""
    return text[:200] or "another process"


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written ({error.strerror})") from error
