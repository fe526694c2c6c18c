"""Which of the processes that torchrun started this is, read from the environment."""

from __future__ import annotations

import os

from mtlcore.errors import UsageError


def launched_world_size() -> int:
    """Return the number of processes that train together.

    Raises:
        UsageError: `WORLD_SIZE` is no number of processes.
    """
    return _number("WORLD_SIZE", default=1, least=1)


def launched_rank() -> int:
    """Return the rank of this process among all of them.

    Where there is one process, it is the first: `RANK` may be left over from something else.

    Raises:
        UsageError: `RANK` is no number of one of the processes.
    """
    processes = launched_world_size()
    rank = _number("RANK", default=0, least=0) if processes > 1 else 0
    if rank >= processes:
        raise UsageError(
            f"RANK={rank} in the environment: of {processes} processes (WORLD_SIZE) the last one "
            f"is {processes - 1}; unset both, or start all processes with torchrun"
        )
    return rank


def launched_local_rank() -> int:
    """Return the rank of this process on its machine.

    Raises:
        UsageError: `LOCAL_RANK` is no number.
    """
    rank = launched_rank()
    return _number("LOCAL_RANK", default=rank, least=0) if launched_world_size() > 1 else 0


def is_main_process() -> bool:
    """Return whether this process writes files and prints messages."""
    return launched_rank() == 0


def _number(name: str, default: int, least: int) -> int:
    """Return a number from the environment; an empty variable counts as none."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise UsageError(
            f"{name}={text!r} in the environment: is not a whole number from {least} on, as "
            "torchrun sets it; unset it"
        )
    return int(text)
