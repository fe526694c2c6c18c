"""How much memory a process has needed."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int:
    """The most memory in use so far, in bytes.

    On a GPU, what torch's tensors took there; elsewhere, all of this process, the libraries that
    it has loaded included. Processes that load data are not counted.
    """
    if device.type == "cuda":
        import torch  # late: what asks for a signal only stays light

        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        # Not getrusage, which on Linux begins with what the process that started this one had.
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
