"""Composable multi-task learning: the names a plugin author imports. Importing this stays light."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtlcore.hookspecs import hookimpl
from mtlcore.specs import (
    BackboneSpec,
    BalancerSpec,
    CrossTaskLossSpec,
    DatasetSpec,
    EpisodeSamplerSpec,
    HeadSpec,
    LossSpec,
    MethodSpec,
    MetricSpec,
    OptimizerSpec,
)

if TYPE_CHECKING:
    from mtlcore.api import create, run
    from mtlcore.tasks import Task

__version__ = "0.1.0"

__all__ = [
    "BackboneSpec",
    "BalancerSpec",
    "CrossTaskLossSpec",
    "DatasetSpec",
    "EpisodeSamplerSpec",
    "HeadSpec",
    "LossSpec",
    "MethodSpec",
    "MetricSpec",
    "OptimizerSpec",
    "Task",
    "__version__",
    "create",
    "hookimpl",
    "run",
]

# These import torch, so they are fetched when they are first asked for.
_LAZY = {"Task": "mtlcore.tasks", "create": "mtlcore.api", "run": "mtlcore.api"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
