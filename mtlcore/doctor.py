"""What this machine offers a run, and what might stand in its way."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from typing import Any

import torch

import mtlcore
from mtlcore.plugins import Plugins

_LIBRARIES = (
    "torch", "numpy", "attrs", "cattrs", "click", "fsspec", "pillow", "pluggy", "rich",
    "safetensors", "matplotlib", "aiohttp", "pyarrow", "scipy",
)  # fmt: skip
_LITTLE_DISK = 1 << 30


def examine(plugins: Plugins) -> dict[str, Any]:
    """Facts by topic; `problems` lists what needs attention."""
    free = shutil.disk_usage(os.getcwd()).free
    problems = [str(info) for info in plugins.infos if info.status in ("failed", "incompatible")]
    if free < _LITTLE_DISK:
        problems.append(f"only {free / 2**20:.0f} MiB of disk are free in {os.getcwd()}")
    if not os.access(os.getcwd(), os.W_OK):
        problems.append(f"{os.getcwd()} cannot be written: give runs another place by --out")
    return {
        "mtlcore": mtlcore.__version__,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "plugins": {info.id: _health(info) for info in plugins.infos},
        "disk free": f"{free / 2**30:.1f} GiB",
        "problems": problems,
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed (optional)"


def _devices() -> list[str]:
    numbers = range(torch.cuda.device_count())
    found = ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in numbers)]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _health(info: Any) -> str:
    return f"{info.version} {info.status}".strip() + (f": {info.reason}" if info.reason else "")
