"""What signals that ask to stop do outside the training loop, and in worker processes.

They are SIGINT (Ctrl-C), SIGTERM, and SIGHUP, which comes when a terminal is closed or a connection
is lost. What `nohup` started goes on.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import NoReturn

from mtlcore.errors import Interrupted

#: The signal of a terminal that goes; None on Windows, which has none.
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
STOPPING = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))
#: By which a cluster warns a job that its time is nearly up.
WARNING = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
#: What a terminal sends to all that was started from it.
FROM_TERMINAL = (signal.SIGINT, *([HANGUP] if HANGUP else []))
# Windows can neither block nor unblock signals.
_CAN_BLOCK = hasattr(signal, "pthread_sigmask")


def stop_by_exception() -> AbstractContextManager[None]:
    """Let these signals raise KeyboardInterrupt, so that open files are closed on the way out."""
    return handled(_raise)


def stop_at_once() -> AbstractContextManager[None]:
    """Let these signals end the process with one line and without an exception.

    Meant for the time of imports, while nothing is open yet: some libraries swallow an exception
    raised while they are imported, and others turn it into a different, misleading error.
    """
    return handled(_leave)


def _raise(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _leave(_number: int, _frame: object) -> NoReturn:
    os.write(2, b"mtl: stopped\n")
    os._exit(Interrupted.exit_code)


@contextmanager
def handled(handler: Callable[[int, object], object]) -> Iterator[None]:
    """Send these signals to a handler within the context; do nothing outside the main thread."""

    def handle(number: int, frame: object) -> None:
        if number == HANGUP:
            _leave_terminal()
        handler(number, frame)

    try:
        before = {one: signal.signal(one, handle) for one in STOPPING if not _is_ignored(one)}
    except ValueError:  # not in the main thread: signals are somebody else's business
        yield
        return
    try:
        yield
    finally:
        for one, earlier in before.items():
            signal.signal(one, earlier)


@contextmanager
def stop_from_outside() -> Iterator[None]:
    """Let these signals end the process as they end any: for waits in which Python hears nothing.

    Do nothing outside the main thread.
    """
    before = {one: signal.getsignal(one) for one in STOPPING if not _is_ignored(one)}
    try:
        for one in before:
            signal.signal(one, signal.SIG_DFL)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _is_ignored(number: int) -> bool:
    """Whether nohup has asked to ignore that a terminal goes."""
    return number == HANGUP and signal.getsignal(number) is signal.SIG_IGN


def _leave_terminal() -> None:
    """Send what is still printed nowhere: writing to a terminal that is gone is an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        with suppress(OSError):  # closed
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def interrupts_noticed() -> Iterator[list[int]]:
    """Yield a list that is no longer empty once a signal that asks to stop has come.

    The signals do what they did before. So a KeyboardInterrupt that somebody asked for is told from
    one that a program raised by itself.
    """
    noticed: list[int] = []
    before = {one: old for one in STOPPING if callable(old := signal.getsignal(one))}

    def notice(number: int, frame: FrameType | None) -> None:
        noticed.append(number)
        before[signal.Signals(number)](number, frame)

    try:
        for one in before:
            signal.signal(one, notice)
    except ValueError:  # not in the main thread, where no signal raises anything
        yield noticed
        return
    try:
        yield noticed
    finally:
        for one, old in before.items():
            signal.signal(one, old)


@contextmanager
def signals_blocked(numbers: Iterable[int] = STOPPING) -> Iterator[None]:
    """Hold signals back within the context, where the platform can; they arrive after it.

    Processes started meanwhile begin with the signals blocked; see `leave_to_parent`.
    """
    if not _CAN_BLOCK:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """Ignore in a worker process what a terminal sends to all; the parent ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if HANGUP:
        signal.signal(HANGUP, signal.SIG_IGN)
    if _CAN_BLOCK:
        # torch has its own handler of SIGTERM by now: it was only held back.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
