"""The records, and the method as it is installed."""

from __future__ import annotations

from typing import Any

import pytest

import mtlcore
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import REQUIRED, settings_of
from mtlcore.testing import (
    TINY_TASKS,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
)
from mtlcore_rotograd import plugin


class TestRotoGrad(MethodContract):
    method = "rotograd"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_rotograd.plugin")
    assert_plugin_is_whole("mtlcore_rotograd.plugin")


def test_names_defaults_and_presets() -> None:
    """The preset is the core's default network with rotations; defaults are those of the page."""
    presets = {method.name: method.read() for method in plugin.mtl_methods()}
    backbone = {
        "name": "rotograd",
        "backbone": {"name": "segnet", "width": 0.0625},
        "rotation_lr": 5e-4,
    }
    balancer = {"name": "rotograd", "burn_in": 20}
    assert presets == {"rotograd": {"model": {"backbone": backbone}, "balancer": balancer}}
    found = {}
    for component in (*plugin.mtl_balancers(), *plugin.mtl_backbones()):
        settings = settings_of(component.load())
        assert all(setting.meaning for setting in settings)
        found[type(component).__name__] = {s.name: s.default for s in settings}
    assert found == {
        "BalancerSpec": {"burn_in": 20},
        "BackboneSpec": {"backbone": REQUIRED, "rotation_lr": 5e-4},
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": {"name": "segnet"}, "rotation_lr": -1.0}, "rotation_lr"),
        ({"backbone": {"name": "nonsense"}}, "nonsense"),
        ({"backbone": {"name": "segnet", "widht": 1.0}}, "widht"),
        ({}, "backbone"),
    ],
)
def test_settings_of_the_backbone_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "rotograd", TINY_TASKS, **settings)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("burn_in", -1)],
)
def test_settings_are_checked(setting: str, value: object) -> None:
    with pytest.raises((ConfigError, MtlError), match=setting):
        mtlcore.create("balancers", "rotograd", **{setting: value})
