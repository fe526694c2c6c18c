"""Ctrl-C and SIGTERM outside the training loop, which finishes its step and saves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn

from mtlcore.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM)


def stop_by_exception() -> AbstractContextManager[None]:
    """Either signal raises KeyboardInterrupt, so that whatever is open is left in order."""
    return handled(_raise)


def stop_at_once() -> AbstractContextManager[None]:
    """Either signal ends the process with a line and without an exception.

    For the time of imports only, while nothing is open: an exception that comes in the midst of
    them is swallowed by some libraries and becomes a puzzling other error in some.
    """
    return handled(_leave)


def _raise(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _leave(_number: int, _frame: object) -> NoReturn:
    os.write(2, b"mtl: stopped\n")
    os._exit(Interrupted.exit_code)


@contextmanager
def handled(handler: Callable[[int, object], object]) -> Iterator[None]:
    """Both signals go to this handler meanwhile."""
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
