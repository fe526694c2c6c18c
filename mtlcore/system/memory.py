"""How much memory a process has needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STATUS = Path("/proc/self/status")


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
