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
from mtlcore_crossstitch import plugin


class TestCrossStitch(MethodContract):
    overrides = (*MethodContract.overrides, "data.size=32x32")
    method = "cross-stitch"


class TestSluice(MethodContract):
    overrides = (*MethodContract.overrides, "data.size=32x32")
    method = "sluice"


class TestCrossStitchOnNYUv2(MethodContract):
    method, needs_files, given = "cross-stitch-nyuv2", True, ("data.root=nyuv2",)


class TestSluiceOnNYUv2(MethodContract):
    method, needs_files, given = "sluice-nyuv2", True, ("data.root=nyuv2",)


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_crossstitch.plugin")
    assert_plugin_is_whole("mtlcore_crossstitch.plugin")


def test_defaults_are_the_papers() -> None:
    found = {}
    for component in plugin.mtl_backbones():
        settings = settings_of(component.load())
        assert all(setting.meaning for setting in settings)
        found[component.name] = {s.name: s.default for s in settings}
    assert found == {
        "cross-stitch": {
            "backbone": REQUIRED,
            "exchange_at": None,
            "own": 0.9,
            "per": "channel",
            "unit_rate": 100.0,
        },
        "sluice": {
            "backbone": REQUIRED,
            "exchange_at": None,
            "subspaces": 2,
            "own": 0.95,
            "skips": True,
            "last": 0.9,
            "orthogonality": 0.1,
            "unit_rate": 1.0,
        },
    }


@pytest.mark.parametrize("name", ["cross-stitch", "sluice"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"own": 1.5}, "own"),
        ({"unit_rate": 0.0}, "unit_rate"),
        ({"exchange_at": [1.5]}, "exchange_at"),
        ({"backbone": {"name": "unet", "widht": 1.0}}, "widht"),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, Any], message: str) -> None:
    table = {"backbone": {"name": "unet", "width": 0.03125, "decoder": "none"}, **settings}
    with pytest.raises(ConfigError, match=message):
        mtlcore.create("backbones", name, TINY_TASKS, **table)
