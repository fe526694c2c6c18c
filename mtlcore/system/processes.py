"""Which of the processes that torchrun started this is, told by the environment alone."""

from __future__ import annotations

import os


def launched_world_size() -> int:
    """The number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """The number of this process among all of them."""
    return int(os.environ.get("RANK", "0"))


def launched_local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", str(launched_rank())))


def is_main_process() -> bool:
    """Whether this is the process that writes files and speaks to people."""
    return launched_rank() == 0
