"""A file lock that processes started by its holder can share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mtlcore.errors import UsageError


@contextmanager
def locked(file: Path, on_wait: Callable[[], None]) -> Iterator[int]:
    """Hold an exclusive lock on a file; yield its open file descriptor.

    A child process that inherits the descriptor holds the lock too, for as long as it lives.

    Args:
        file: Created if it does not exist, and never removed.
        on_wait: Called once if another process holds the lock, before waiting for it.

    Raises:
        UsageError: This platform has no such locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise UsageError(
            f"{file}: cannot be locked: this platform has no fcntl, which a study needs. Use "
            "Linux, macOS or WSL, or train the runs one by one with mtl run"
        ) from error
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
