"""Calling what a plugin brings, so that whatever it does ends in an error of its own.

A module may exit while it is imported, raise what Ctrl-C raises, or print where a command prints
what a program reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TypeVar

from mtlcore.errors import MtlError, describe
from mtlcore.system import interrupts_noticed

_T = TypeVar("_T")


def called(what: str, call: Callable[[], _T]) -> _T:
    """Return what a function of a plugin returns; what it prints goes to standard error.

    Args:
        what: What is tried, for the message.
        call: The function.

    Raises:
        MtlError: It raised anything, or wanted to end the program.
        KeyboardInterrupt: A signal asked to stop meanwhile.
    """
    with interrupts_noticed() as noticed, redirect_stdout(sys.stderr):
        try:
            return call()
        except BaseException as error:
            if noticed:
                raise
            raise MtlError(f"{what}: {describe(error)}") from error
