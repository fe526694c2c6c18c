"""What belongs to the operating system: signals and memory."""

from mtlcore.system.memory import peak_memory
from mtlcore.system.processes import (
    is_main_process,
    launched_local_rank,
    launched_rank,
    launched_world_size,
)
from mtlcore.system.signals import STOPPING, handled, stop_at_once, stop_by_exception

__all__ = [
    "STOPPING",
    "handled",
    "is_main_process",
    "launched_local_rank",
    "launched_rank",
    "launched_world_size",
    "peak_memory",
    "stop_at_once",
    "stop_by_exception",
]
