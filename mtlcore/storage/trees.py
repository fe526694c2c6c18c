"""Nested tables as one table of dotted paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested tables by their dotted path, in order.

    Lists are values. Empty tables are left out.

    Args:
        tree: The tables, such as a configuration.
        prefix: Path of `tree` itself; empty for a root.
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            values.update(flatten(value, path))
        else:
            values[path] = value
    return values
