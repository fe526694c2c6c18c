"""NaN in JSON, which does not know it: null stands for it in files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def without_nan(value: Any) -> Any:
    """Return a JSON tree with null for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def with_nan(value: Any) -> Any:
    """Return a JSON tree with NaN for every null."""
    if isinstance(value, Mapping):
        return {key: with_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def or_nan(value: float | None) -> float:
    """Return a number, NaN for None."""
    return math.nan if value is None else float(value)
