"""The operating system: signals, memory, file locks, and the ranks that torchrun sets.

POSIX-only modules of Python are used here and nowhere else. Without them, everything but studies
works.
"""

from mtlcore.system.locks import locked
from mtlcore.system.memory import peak_memory
from mtlcore.system.processes import (
    is_main_process,
    launched_local_rank,
    launched_rank,
    launched_world_size,
)
from mtlcore.system.signals import (
    STOPPING,
    handled,
    leave_to_parent,
    signals_blocked,
    stop_at_once,
    stop_by_exception,
)

__all__ = [
    "STOPPING",
    "handled",
    "is_main_process",
    "launched_local_rank",
    "launched_rank",
    "launched_world_size",
    "leave_to_parent",
    "locked",
    "peak_memory",
    "signals_blocked",
    "stop_at_once",
    "stop_by_exception",
]
