"""Plugins: hooks, records of components, their settings, and looking them up."""

from mtlcore.plugins.catalogue import KNOWN
from mtlcore.plugins.components import Component, PluginInfo, Selection
from mtlcore.plugins.hookspecs import hookimpl
from mtlcore.plugins.manager import STANDARD, Plugins, create
from mtlcore.plugins.plain_values import NotPlain, as_plain
from mtlcore.plugins.settings import (
    NO_COMPONENT,
    REQUIRED,
    Setting,
    expanded,
    nested_in,
    settings_of,
)
from mtlcore.plugins.specs import (
    KINDS,
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
    Spec,
    hook_name,
    singular,
)
from mtlcore.plugins.structuring import convert, structure

__all__ = [
    "KINDS",
    "KNOWN",
    "NO_COMPONENT",
    "REQUIRED",
    "STANDARD",
    "AugmentationSpec",
    "BackboneSpec",
    "BalancerSpec",
    "Component",
    "CrossTaskLossSpec",
    "DatasetSpec",
    "EpisodeSamplerSpec",
    "ExporterSpec",
    "HeadSpec",
    "LauncherSpec",
    "LoggerSpec",
    "LossSpec",
    "MethodSpec",
    "MetricSpec",
    "NeckSpec",
    "NotPlain",
    "OptimizerSpec",
    "PluginInfo",
    "Plugins",
    "SearcherSpec",
    "Selection",
    "Setting",
    "Spec",
    "as_plain",
    "convert",
    "create",
    "expanded",
    "hook_name",
    "hookimpl",
    "nested_in",
    "settings_of",
    "singular",
    "structure",
]
