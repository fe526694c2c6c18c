"""Which of the processes that torchrun started this is, read from the environment."""

from __future__ import annotations

import os


def launched_world_size() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Return the rank of this process among all of them."""
    return int(os.environ.get("RANK", "0"))


def launched_local_rank() -> int:
    """Return the rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", str(launched_rank())))


def is_main_process() -> bool:
    """Return whether this process writes files and prints messages."""
    return launched_rank() == 0
