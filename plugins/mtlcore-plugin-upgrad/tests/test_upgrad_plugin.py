"""The records, and the method as it is installed."""

from __future__ import annotations

from mtlcore.plugins import settings_of
from mtlcore.testing import (
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    assert_settings_are_checked,
)
from mtlcore_upgrad import plugin


class TestUpgrad(MethodContract):
    method = "upgrad"


class TestDualProj(MethodContract):
    method = "dual-proj"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_upgrad.plugin")
    assert_plugin_is_whole("mtlcore_upgrad.plugin")


def test_names_defaults_and_presets() -> None:
    """The presets touch the balancer only; the defaults are those of the page."""
    presets = {method.name: method.read() for method in plugin.mtl_methods()}
    assert presets == {
        "upgrad": {"balancer": {"name": "upgrad", "reduction": "mean"}},
        "dual-proj": {"balancer": {"name": "dual-proj", "reduction": "mean"}},
    }
    found = {}
    for balancer in plugin.mtl_balancers():
        settings = settings_of(balancer.load())
        assert all(setting.meaning for setting in settings)
        found[balancer.name] = {setting.name: setting.default for setting in settings}
    assert found == {"upgrad": {"reduction": "mean"}, "dual-proj": {"reduction": "mean"}}


def test_settings_are_checked() -> None:
    for name in ("upgrad", "dual-proj"):
        assert_settings_are_checked("balancers", name, reduction=["average"])
