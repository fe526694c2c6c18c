"""Composable multi-task learning: the names a plugin author imports. Importing this stays light."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtlcore._version import __version__
from mtlcore.plugins import (
    AugmentationSpec,
    BackboneSpec,
    BalancerSpec,
    CrossTaskLossSpec,
    DatasetSpec,
    EpisodeSamplerSpec,
    ExporterSpec,
    HeadSpec,
    LauncherSpec,
    LoggerSpec,
    LossSpec,
    MethodSpec,
    MetricSpec,
    NeckSpec,
    OptimizerSpec,
    SearcherSpec,
    create,
    hookimpl,
)
from mtlcore.ranges import Length, Nested, Range

if TYPE_CHECKING:
    from mtlcore.runs import export_model, run
    from mtlcore.tasks import Task

__all__ = [
    "AugmentationSpec",
    "BackboneSpec",
    "BalancerSpec",
    "CrossTaskLossSpec",
    "DatasetSpec",
    "EpisodeSamplerSpec",
    "ExporterSpec",
    "HeadSpec",
    "LauncherSpec",
    "Length",
    "LoggerSpec",
    "LossSpec",
    "MethodSpec",
    "MetricSpec",
    "NeckSpec",
    "Nested",
    "OptimizerSpec",
    "Range",
    "SearcherSpec",
    "Task",
    "__version__",
    "create",
    "export_model",
    "hookimpl",
    "run",
]

# These import torch, so they are fetched when they are first asked for.
_LAZY = {"Task": "mtlcore.tasks", "export_model": "mtlcore.runs", "run": "mtlcore.runs"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
