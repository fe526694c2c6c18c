"""Backbones, necks and heads, and the model that runs a backbone with one head per task."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtlcore.features import Features
from mtlcore.models.conditioning import (
    ConditionedBackbone,
    LayerPerTask,
    ParallelAdapters,
    TaskLayer,
    adaptable,
    copies,
)
from mtlcore.models.contracts import (
    AVERAGE,
    INITIAL,
    Backbone,
    ExchangePoint,
    Head,
    Neck,
    ResidualBlock,
    StepContext,
    Transition,
)
from mtlcore.models.encoders import (
    ImageEncoder,
    PyramidKind,
    Stage,
    chosen_stages,
    computes_again,
    no_checkpointing,
)
from mtlcore.models.exporting import is_exporting
from mtlcore.models.freezing import Frozen, made_for
from mtlcore.models.model import MultiTaskModel, count_parameters
from mtlcore.models.necks import NeckPerTask, Necks, SharedNeck
from mtlcore.models.rates import SAME_RATES, BackboneRates, groups_of
from mtlcore.models.wrapping import WrappingBackbone, joined, shared_maps

if TYPE_CHECKING:
    from mtlcore.models.exchange import (
        BackbonePerTask,
        ExchangingBackbone,
        Places,
        as_it_was,
        as_map,
    )

__all__ = [
    "AVERAGE",
    "INITIAL",
    "SAME_RATES",
    "Backbone",
    "BackbonePerTask",
    "BackboneRates",
    "ConditionedBackbone",
    "ExchangePoint",
    "ExchangingBackbone",
    "Features",
    "Frozen",
    "Head",
    "ImageEncoder",
    "LayerPerTask",
    "MultiTaskModel",
    "Neck",
    "NeckPerTask",
    "Necks",
    "ParallelAdapters",
    "Places",
    "PyramidKind",
    "ResidualBlock",
    "SharedNeck",
    "Stage",
    "StepContext",
    "TaskLayer",
    "Transition",
    "WrappingBackbone",
    "adaptable",
    "as_it_was",
    "as_map",
    "chosen_stages",
    "computes_again",
    "copies",
    "count_parameters",
    "groups_of",
    "is_exporting",
    "joined",
    "made_for",
    "no_checkpointing",
    "shared_maps",
]

# torch's compiler comes with them, which takes longer to import than all of mtlcore.
_EXCHANGE = ("BackbonePerTask", "ExchangingBackbone", "Places", "as_it_was", "as_map")


def __getattr__(name: str) -> Any:
    if name in _EXCHANGE:
        return getattr(import_module("mtlcore.models.exchange"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXCHANGE})
