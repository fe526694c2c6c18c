"""The records, and the method as it is installed."""

from __future__ import annotations

import pytest

import mtlcore
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import settings_of
from mtlcore.testing import MethodContract, assert_plugin_is_light, assert_plugin_is_whole
from mtlcore_dtp import plugin


class TestDtp(MethodContract):
    method = "dtp"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_dtp.plugin")
    assert_plugin_is_whole("mtlcore_dtp.plugin")


def test_names_defaults_and_presets() -> None:
    """The presets touch the balancer and how often it hears of metrics."""
    presets = {method.name: method.read() for method in plugin.mtl_methods()}
    assert presets == {
        "dtp": {
            "balancer": {"name": "dtp", "discount": 0.5, "gamma": 1.0},
            "training": {"evaluate_every": 1},
        }
    }
    found = {}
    for balancer in plugin.mtl_balancers():
        settings = settings_of(balancer.load())
        assert all(setting.meaning for setting in settings)
        found[balancer.name] = {setting.name: setting.default for setting in settings}
    assert found == {"dtp": {"discount": 0.5, "gamma": 1.0, "kpis": None}}


@pytest.mark.parametrize(
    ("setting", "value"),
    [("discount", 0.0), ("discount", 1.1), ("gamma", -0.1), ("kpis", "miou")],
)
def test_settings_are_checked(setting: str, value: object) -> None:
    with pytest.raises((ConfigError, MtlError), match=setting):
        mtlcore.create("balancers", "dtp", **{setting: value})
