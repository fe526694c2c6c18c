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
from mtlcore_pad_net import plugin

METHODS = {spec.name: spec for spec in plugin.mtl_methods()}


class TestPADNet(MethodContract):
    method = "pad-net"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_pad_net.plugin")
    assert_plugin_is_whole("mtlcore_pad_net.plugin")


def test_names_and_defaults() -> None:
    assert set(METHODS) == {"pad-net", "pad-net-nyud", "pad-net-pascal"}
    (backbone,), (head,) = plugin.mtl_backbones(), plugin.mtl_heads()
    assert (backbone.name, head.name) == ("pad-net", "bottlenecks")
    defaults = {s.name: s.default for s in settings_of(backbone.load())}
    assert defaults == {
        "backbone": REQUIRED,
        "auxiliary": (),
        "distillation": "c",
        "channels": 256,
    }
    assert {s.name: s.default for s in settings_of(head.load())} == {"blocks": 2}


@pytest.mark.parametrize("method", METHODS)
def test_auxiliary_tasks_have_the_head_that_only_predicts(method: str) -> None:
    preset = METHODS[method].read()
    auxiliary = preset["model"]["backbone"].get("auxiliary", [])
    assert set(auxiliary) < set(preset["tasks"])
    assert auxiliary == ([] if method == "pad-net-pascal" else ["normals", "edges"])
    pointwise = {name for name, head in preset["model"].get("heads", {}).items()
                 if head == {"name": "pointwise"}}  # fmt: skip
    assert pointwise == set(auxiliary)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels"),
        ({"distillation": "d"}, "distillation"),
        ({"auxiliary": ["edges"]}, "auxiliary: no task named 'edges'"),
        ({"backbone": {"name": "resnet", "dept": 18}}, "dept"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    given = {"backbone": {"name": "resnet", "depth": 18, "width": 0.0625}, **settings}
    with torch.device("meta"), pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "pad-net", TINY_TASKS, **given)
