"""The operating system: signals, streams, memory, file locks, the ranks that torchrun sets.

POSIX-only modules of Python are used here and nowhere else. Without them, everything but studies
works.
"""

from mtlcore.system.locks import HeldLock, LockHeld, locked, this_process
from mtlcore.system.memory import out_of_memory, peak_memory
from mtlcore.system.processes import (
    is_main_process,
    launched_local_rank,
    launched_rank,
    launched_world_size,
)
from mtlcore.system.signals import (
    FROM_TERMINAL,
    HANGUP,
    STOPPING,
    WARNING,
    handled,
    interrupts_noticed,
    leave_to_parent,
    signals_blocked,
    stop_at_once,
    stop_by_exception,
    stop_from_outside,
)
from mtlcore.system.streams import prepare_streams

__all__ = [
    "FROM_TERMINAL",
    "HANGUP",
    "STOPPING",
    "WARNING",
    "HeldLock",
    "LockHeld",
    "handled",
    "interrupts_noticed",
    "is_main_process",
    "launched_local_rank",
    "launched_rank",
    "launched_world_size",
    "leave_to_parent",
    "locked",
    "out_of_memory",
    "peak_memory",
    "prepare_streams",
    "signals_blocked",
    "stop_at_once",
    "stop_by_exception",
    "stop_from_outside",
    "this_process",
]
