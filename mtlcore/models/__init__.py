"""Backbones, necks and heads, and the model that runs a backbone with one head per task."""

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
from mtlcore.models.exchange import (
    BackbonePerTask,
    ExchangingBackbone,
    Places,
    as_it_was,
    as_map,
)
from mtlcore.models.exporting import is_exporting
from mtlcore.models.freezing import Frozen, made_for
from mtlcore.models.model import MultiTaskModel, count_parameters
from mtlcore.models.necks import NeckPerTask, Necks, SharedNeck
from mtlcore.models.rates import SAME_RATES, BackboneRates, groups_of
from mtlcore.models.wrapping import WrappingBackbone, joined, shared_maps

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
