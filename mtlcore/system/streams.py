"""Standard streams that can be written to, whatever the program was started with."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


def prepare_streams() -> None:
    """Open what is closed of the standard streams, and let both outputs take any text.

    A file opened later must not get the number of a stream that was closed, or what is printed
    ends up in it. What an encoding lacks is written as an escape such as `\\u2026`.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file whose descriptor has become a pipe's since cannot be changed any more.
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")
