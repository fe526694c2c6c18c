"""The records, and the method as it is installed."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import REQUIRED, settings_of
from mtlcore.testing import (
    TINY_TASKS,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
)
from mtlcore_mtinet import plugin

METHODS = {spec.name: spec for spec in plugin.mtl_methods()}


class TestMTINet(MethodContract):
    method = "mti-net"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_mtinet.plugin")
    assert_plugin_is_whole("mtlcore_mtinet.plugin")


def test_names_and_defaults() -> None:
    assert set(METHODS) == {"mti-net", "mti-net-nyud", "mti-net-pascal"}
    (backbone,) = plugin.mtl_backbones()
    assert backbone.name == "mti-net"
    defaults = {s.name: s.default for s in settings_of(backbone.load())}
    assert defaults == {"backbone": REQUIRED, "auxiliary": (), "fpn": None}


@pytest.mark.parametrize("method", METHODS)
def test_auxiliary_tasks_have_the_head_that_only_predicts(method: str) -> None:
    preset = METHODS[method].read()
    auxiliary = preset["model"]["backbone"].get("auxiliary", [])
    assert set(auxiliary) < set(preset["tasks"])
    assert auxiliary == ([] if method == "mti-net-pascal" else ["normals", "edges"])
    pointwise = {name for name, head in preset["model"].get("heads", {}).items()
                 if head == {"name": "pointwise"}}  # fmt: skip
    assert pointwise == set(auxiliary)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fpn": 0}, "fpn"),
        ({"auxiliary": ["edges"]}, "auxiliary: no task named 'edges'"),
        ({"backbone": {"name": "resnet", "dept": 18}}, "dept"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    given = {"backbone": {"name": "resnet", "depth": 18, "width": 0.0625, "pyramid": True}}
    given |= settings
    with torch.device("meta"), pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "mti-net", TINY_TASKS, **given)
