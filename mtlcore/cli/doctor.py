"""The command that looks for problems of an installation: `mtl doctor`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from typing import Any

import click

from mtlcore._version import __version__
from mtlcore.cli.components import plugins_of
from mtlcore.errors import describe
from mtlcore.plugins import Plugins

_LIBRARIES = (
    "torch", "numpy", "attrs", "cattrs", "click", "fsspec", "pillow", "pluggy", "rich",
    "safetensors", "aiohttp", "pyarrow", "scipy",
)  # fmt: skip
_LITTLE_DISK = 1 << 30


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Show versions, devices and problems.

    Threads, plugins and disk space are shown too. Send the output along with a question.
    """
    facts = examine(plugins_of(ctx))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for topic, content in facts.items():
        if isinstance(content, dict):
            click.echo(f"{topic}:")
            for key, value in content.items():
                click.echo(f"  {key:<24} {value}")
        else:
            lines = content if isinstance(content, list) else [content]
            click.echo(f"{topic}: {lines[0] if lines else 'none'}")
            for line in lines[1:]:
                click.echo(f"  {line}")


def examine(plugins: Plugins) -> dict[str, Any]:
    """Return facts by topic, ready for JSON; `problems` lists what needs attention."""
    import torch

    free = shutil.disk_usage(os.getcwd()).free
    problems = [str(info) for info in plugins.infos if info.status in ("failed", "incompatible")]
    if free < _LITTLE_DISK:
        problems.append(f"only {free / 2**20:.0f} MiB of disk are free in {os.getcwd()}")
    if not os.access(os.getcwd(), os.W_OK):
        problems.append(f"{os.getcwd()} cannot be written: give runs another place by --out")
    return {
        "mtlcore": __version__,
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
        # None where the metadata has no version, or is missing.
        return importlib.metadata.version(name) or "unknown: its installation is damaged"
    except importlib.metadata.PackageNotFoundError:
        return "not installed (optional)"
    except Exception as error:  # whatever is wrong with its files
        return f"unknown: its installation is damaged ({describe(error)})"


def _devices() -> list[str]:
    import torch

    numbers = range(torch.cuda.device_count())
    devices = ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in numbers)]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _health(info: Any) -> str:
    return f"{info.version} {info.status}".strip() + (f": {info.reason}" if info.reason else "")


COMMANDS = [doctor]
