"""The records, and the method as it is installed."""

from __future__ import annotations

from mtlcore.plugins import settings_of
from mtlcore.testing import (
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    assert_settings_are_checked,
)
from mtlcore_famo import plugin


class TestFamo(MethodContract):
    method = "famo"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_famo.plugin")
    assert_plugin_is_whole("mtlcore_famo.plugin")


def test_names_defaults_and_presets() -> None:
    """The presets touch the balancer only; the defaults are those of the page."""
    presets = {method.name: method.read() for method in plugin.mtl_methods()}
    assert presets == {"famo": {"balancer": {"name": "famo", "lr": 0.025, "weight_decay": 0.001}}}
    found = {}
    for balancer in plugin.mtl_balancers():
        settings = settings_of(balancer.load())
        assert all(setting.meaning for setting in settings)
        found[balancer.name] = {setting.name: setting.default for setting in settings}
    assert found == {"famo": {"lr": 0.025, "weight_decay": 0.001, "min_losses": None}}


def test_settings_are_checked() -> None:
    assert_settings_are_checked(
        "balancers", "famo", lr=[-1.0], weight_decay=[-0.1], min_losses=["none"]
    )
