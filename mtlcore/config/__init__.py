"""The configuration of a run: core defaults < plugin presets < file < `--set`."""

from mtlcore.config.merging import CORE_DEFAULTS, Layer, file_layer, set_layer
from mtlcore.config.origins import annotated
from mtlcore.config.resolver import resolve, resolve_backbone, resolve_data, resolve_logger
from mtlcore.config.run_config import Chosen, ChosenData, ChosenMetric, RunConfig, TeacherConfig
from mtlcore.config.schema import (
    BALANCING_KEYS,
    AugmentConfig,
    BackboneConfig,
    BalancingConfig,
    DataConfig,
    InitialConfig,
    NeckConfig,
    TrainingConfig,
)

__all__ = [
    "BALANCING_KEYS",
    "CORE_DEFAULTS",
    "AugmentConfig",
    "BackboneConfig",
    "BalancingConfig",
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
    "resolve_logger",
    "set_layer",
]
