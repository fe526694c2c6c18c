"""How a run came about: what run.json tells."""

from __future__ import annotations

import platform
import sys
from typing import Any

import torch

from mtlcore._version import __version__
from mtlcore.config import RunConfig
from mtlcore.plugins import Plugins


def provenance(
    plugins: Plugins, config: RunConfig, device: torch.device, processes: int
) -> dict[str, Any]:
    """Return what run.json tells of how the run came about."""
    return {
        "argv": sys.argv,
        "mtlcore": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "plugins": {
            info.id: f"{info.distribution} {info.version}".strip()
            for info in plugins.infos
            if info.status == "ok"
        },
        "method": config.method,
        "seed": config.seed,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
