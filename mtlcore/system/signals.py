"""What Ctrl-C (SIGINT) and SIGTERM do outside the training loop, and in worker processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn

from mtlcore.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM)
# Windows can neither block nor unblock signals.
_CAN_BLOCK = hasattr(signal, "pthread_sigmask")


def stop_by_exception() -> AbstractContextManager[None]:
    """Let either signal raise KeyboardInterrupt, so that open files are closed on the way out."""
    return handled(_raise)


def stop_at_once() -> AbstractContextManager[None]:
    """Let either signal end the process with one line and without an exception.

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
    """Send both signals to a handler within the context; do nothing outside the main thread."""
    try:
        before = {one: signal.signal(one, handler) for one in STOPPING}
    except ValueError:  # not in the main thread: signals are somebody else's business
        yield
        return
    try:
        yield
    finally:
        for one in STOPPING:
            signal.signal(one, before[one])


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Hold both signals back within the context, where the platform can; they arrive after it.

    Processes started meanwhile begin with the signals blocked; see `leave_to_parent`.
    """
    if not _CAN_BLOCK:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """Ignore Ctrl-C in a worker process: a terminal sends it to all, and the parent ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _CAN_BLOCK:
        # torch has its own handler of SIGTERM by now: it was only held back.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
