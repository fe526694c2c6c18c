"""JSON knows no NaN: null stands for it, on the way out and on the way back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def without_nan(value: Any) -> Any:
    """The same with null for every number that is not finite, in tables and lists too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def or_nan(value: float | None) -> float:
    """A number that was written so."""
    return math.nan if value is None else float(value)
