"""The records, the settings, and the method as it is installed."""

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
from mtlcore_astmt import plugin


class TestASTMT(MethodContract):
    overrides = (*MethodContract.overrides, "data.size=64x64")
    method = "astmt"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_astmt.plugin")
    assert_plugin_is_whole("mtlcore_astmt.plugin")


def test_names_and_defaults() -> None:
    assert {spec.name for spec in plugin.mtl_methods()} == {"astmt", "astmt-nyud", "astmt-pascal"}
    (backbone,), (loss,) = plugin.mtl_backbones(), plugin.mtl_losses()
    assert {s.name: s.default for s in settings_of(backbone.load())} == {
        "encoder": REQUIRED,
        "channels": 64,
        "reduction": 16,
    }
    assert {s.name: s.default for s in settings_of(loss.load())} == {
        "weight": 0.01,
        "kernel": 1,
        "rate": 10.0,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels"),
        ({"reduction": 0}, "reduction"),
        ({"encoder": {"name": "resnet", "dept": 18}}, "dept"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    resnet = {"name": "resnet", "depth": 18, "width": 0.125, "pyramid": True}
    with torch.device("meta"), pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "astmt", TINY_TASKS, **{"encoder": resnet, **settings})
