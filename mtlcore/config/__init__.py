"""The configuration of a run: core defaults < plugin presets < file < `--set`."""

from mtlcore.config.merging import CORE_DEFAULTS, Layer, file_layer, set_layer
from mtlcore.config.origins import annotated
from mtlcore.config.resolver import resolve, resolve_backbone, resolve_data
from mtlcore.config.run_config import Chosen, ChosenData, ChosenMetric, RunConfig, TeacherConfig
from mtlcore.config.schema import (
    AugmentConfig,
    BackboneConfig,
    DataConfig,
    InitialConfig,
    NeckConfig,
    TrainingConfig,
)

__all__ = [
    "CORE_DEFAULTS",
    "AugmentConfig",
    "BackboneConfig",
    "Chosen",
    "ChosenData",
    "ChosenMetric",
    "DataConfig",
    "InitialConfig",
    "Layer",
    "NeckConfig",
    "RunConfig",
    "TeacherConfig",
    "TrainingConfig",
    "annotated",
    "file_layer",
    "resolve",
    "resolve_backbone",
    "resolve_data",
    "set_layer",
]
