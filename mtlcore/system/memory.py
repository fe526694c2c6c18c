"""How much memory a process has needed, and errors that say that there is no more."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STATUS = Path("/proc/self/status")
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|Cannot allocate memory|bad allocation|std::bad_alloc"
    r"|unable to mmap|storage size calculation overflowed",
    re.IGNORECASE,
)

_ASKED = re.compile(r"you tried to allocate \d+ bytes")


def peak_memory(device: torch.device) -> int:
    """Return the peak memory use so far, in bytes.

    On a GPU this is what torch's tensors took there. Elsewhere it is the resident memory of this
    process with all the libraries that it has loaded, but without the processes that load data.
    Where the platform does not say, return 0.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        # Not getrusage: on Linux its peak includes that of the process that started this one.
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def out_of_memory(error: BaseException) -> str | None:
    """Return what an error says of memory that is used up, None where it is about something else.

    torch raises its errors of the processor's memory as plain `RuntimeError`s.
    """
    asked = _ASKED.search(str(error))  # torch says it behind the place in its own code
    said = asked[0] if asked else str(error).partition("\n")[0].partition(". ")[0].strip()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return said or "an allocation failed"
    if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
        return said
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return said
    return None
