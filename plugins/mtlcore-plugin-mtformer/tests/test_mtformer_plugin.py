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
from mtlcore_mtformer import plugin

METHODS = {spec.name: spec for spec in plugin.mtl_methods()}


class TestMTFormer(MethodContract):
    method = "mtformer"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_mtformer.plugin")
    assert_plugin_is_whole("mtlcore_mtformer.plugin")


def test_names_and_defaults() -> None:
    assert set(METHODS) == {"mtformer", "mtformer-nyud", "mtformer-pascal"}
    (backbone,), (head,), (loss,) = plugin.mtl_backbones(), plugin.mtl_heads(), plugin.mtl_losses()
    assert (backbone.name, head.name, loss.name) == ("mtformer", "mtformer", "task-contrast")
    assert {s.name: s.default for s in settings_of(backbone.load())} == {
        "backbone": REQUIRED,
        "channels": 256,
        "heads": 4,
        "window": 7,
        "stride": 8,
    }
    assert not settings_of(head.load())
    assert {s.name: s.default for s in settings_of(loss.load())} == {
        "weight": 0.01,
        "negatives": 2000,
        "temperature": 0.07,
        "momentum": 0.5,
        "outputs": 128,
        "samples": 4998,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 6}, "channels: 6 must be a multiple of the 4"),
        ({"heads": 0}, "heads"),
        ({"window": 0}, "window"),
        ({"window": 65}, "window"),
        ({"stride": 0}, "stride"),
        ({"stride": 64}, "reads those of 64"),
        ({"backbone": {"name": "resnet", "dept": 18}}, "dept"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    given = {"backbone": {"name": "resnet", "depth": 18, "width": 0.0625, "pyramid": True}}
    given |= settings
    with torch.device("meta"), pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "mtformer", TINY_TASKS, **given)
