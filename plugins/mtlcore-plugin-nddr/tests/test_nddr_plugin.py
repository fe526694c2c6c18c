"""The records, and the methods as they are installed."""

from __future__ import annotations

from typing import Any

import pytest

import mtlcore
from mtlcore.errors import ConfigError
from mtlcore.plugins import REQUIRED, settings_of
from mtlcore.testing import (
    TINY_TASKS,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
)
from mtlcore_nddr import plugin


class TestNDDR(MethodContract):
    overrides = (*MethodContract.overrides, "data.size=32x32")
    method = "nddr"


class TestShortcut(MethodContract):
    overrides = (*MethodContract.overrides, "data.size=32x32")
    method = "nddr-shortcut"


class TestNDDROnNYUv2(MethodContract):
    method, needs_files, given = "nddr-nyuv2", True, ("data.root=nyuv2",)


class TestShortcutOnNYUv2(MethodContract):
    method, needs_files, given = "nddr-shortcut-nyuv2", True, ("data.root=nyuv2",)


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_nddr.plugin")
    assert_plugin_is_whole("mtlcore_nddr.plugin")


def test_defaults_are_the_papers() -> None:
    (component,) = plugin.mtl_backbones()
    settings = settings_of(component.load())
    assert all(setting.meaning for setting in settings)
    assert {s.name: s.default for s in settings} == {
        "backbone": REQUIRED,
        "exchange_at": None,
        "own": 0.9,
        "shortcut": False,
        "activation": "relu",
        "layer_rate": 100.0,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"own": 1.5}, "own"),
        ({"layer_rate": 0.0}, "layer_rate"),
        ({"activation": "gelu"}, "activation"),
        ({"exchange_at": [1.5]}, "exchange_at"),
        ({"backbone": {"name": "unet", "widht": 1.0}}, "widht"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    table = {"backbone": {"name": "unet", "width": 0.03125, "decoder": "none"}, **settings}
    with pytest.raises(ConfigError, match=message):
        mtlcore.create("backbones", "nddr", TINY_TASKS, **table)
