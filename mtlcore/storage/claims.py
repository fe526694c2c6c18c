"""Who writes a run's directory: one process at a time.

A local directory is locked: a second process is refused, and what a killed one leaves behind does
not count. Object stores know no locks. There, whoever starts last owns the directory: a process
that another one has followed stops at its next upload, before it writes anything.
"""

from __future__ import annotations

import abc
import uuid
from contextlib import suppress
from pathlib import Path
from typing import final

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.system import HeldLock, LockHeld, this_process

#: The file that says who writes a run's directory.
LOCK = "run.lock"


class Claim(abc.ABC):
    """The right of one process to write a run's directory."""

    @abc.abstractmethod
    def check(self) -> None:
        """Make sure that the directory is still there and still this process's.

        Raises:
            MtlError: It is not; the message says what to do.
        """

    @abc.abstractmethod
    def release(self) -> None:
        """Let others have the directory."""


@final
class NoClaim(Claim):
    """What suffices where nothing is written: of a run that is finished."""

    def check(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


@final
class LocalClaim(Claim):
    """A lock on a local directory.

    Args:
        location: The directory, which exists.

    Raises:
        UsageError: Another process has it, or it cannot be written.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        try:
            self._lock = HeldLock(Path(location) / LOCK)
        except LockHeld as error:
            raise UsageError(
                f"{location}: is being written by {error}; wait for its end, or choose another "
                "--out"
            ) from None

    def check(self) -> None:
        """Make sure that the directory was neither deleted nor replaced."""
        if not self._lock.is_held():
            raise MtlError(
                f"{self._location}: was deleted or moved while the run wrote it; nothing more is "
                "saved. Start the run again, with another --out if a program cleans up there"
            )

    def release(self) -> None:
        """Unlock the directory."""
        self._lock.release()


@final
class RemoteClaim(Claim):
    """A file beside those of a run at a URL, which names the last process that started.

    Args:
        location: The URL of the directory.

    Attributes:
        before: Who had the directory and did not release it; None: nobody.

    Raises:
        UsageError: It cannot be written.
    """

    def __init__(self, location: str) -> None:
        import fsspec

        self._location = location
        self._own = f"{this_process()} ({uuid.uuid4().hex})\n".encode()
        try:
            self._files, root = fsspec.core.url_to_fs(location)
            self._place = f"{root.rstrip('/')}/{LOCK}"
            found = self._read()
            self._files.makedirs(root, exist_ok=True)
            self._files.pipe_file(self._place, self._own)
        except Exception as error:  # a network's file system raises what its libraries raise
            raise UsageError(f"{location}: cannot be written ({describe(error)})") from error
        self.before = None if found is None else found.decode("utf-8", "replace").strip()[:200]

    def check(self) -> None:
        """Make sure that no other process has started since."""
        found = self._read()
        if found != self._own:
            other = "" if found is None else f" ({found.decode('utf-8', 'replace').strip()[:200]})"
            raise MtlError(
                f"{self._location}: another process has taken this run over{other}, and this one "
                "uploads nothing more; give each run a place of its own"
            )

    def release(self) -> None:
        """Remove the file, unless it is another's by now."""
        with suppress(Exception):  # what stays behind is replaced by the next start
            if self._read() == self._own:
                self._files.rm_file(self._place)

    def _read(self) -> bytes | None:
        # What was listed before may have changed.
        self._files.invalidate_cache()
        try:
            content: bytes = self._files.cat_file(self._place)
        except (FileNotFoundError, NotADirectoryError, KeyError):
            return None
        return content
