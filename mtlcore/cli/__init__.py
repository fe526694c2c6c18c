"""The `mtl` command."""

from mtlcore.cli.group import main

__all__ = [
    "main",
]
