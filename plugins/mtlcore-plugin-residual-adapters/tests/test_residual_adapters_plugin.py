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
from mtlcore_residual_adapters import plugin


class TestResidualAdapters(MethodContract):
    overrides = (*MethodContract.overrides, "data.size=32x32")
    method = "residual-adapters"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_residual_adapters.plugin")
    assert_plugin_is_whole("mtlcore_residual_adapters.plugin")


def test_names_and_defaults() -> None:
    assert {spec.name for spec in plugin.mtl_methods()} == {
        "residual-adapters",
        "residual-adapters-nyud",
        "series-adapters-nyud",
    }
    (component,) = plugin.mtl_backbones()
    assert {s.name: s.default for s in settings_of(component.load())} == {
        "encoder": REQUIRED,
        "placement": "parallel",
        "frozen": False,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"placement": "before"}, "placement"),
        ({"encoder": {"name": "resnet", "dept": 18}}, "dept"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    given = {"encoder": {"name": "resnet", "depth": 18, "width": 0.125}, **settings}
    with torch.device("meta"), pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "residual-adapters", TINY_TASKS, **given)
