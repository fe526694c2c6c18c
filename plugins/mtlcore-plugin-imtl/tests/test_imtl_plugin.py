"""The records, and the method as it is installed."""

from __future__ import annotations

from mtlcore.plugins import settings_of
from mtlcore.testing import (
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    assert_settings_are_checked,
)
from mtlcore_imtl import plugin


class TestImtl(MethodContract):
    method = "imtl"


class TestImtlG(MethodContract):
    method = "imtl-g"


class TestImtlL(MethodContract):
    method = "imtl-l"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_imtl.plugin")
    assert_plugin_is_whole("mtlcore_imtl.plugin")


def test_names_defaults_and_presets() -> None:
    """The presets touch the balancer only; the defaults are those of the page."""
    presets = {method.name: method.read() for method in plugin.mtl_methods()}
    assert presets == {
        "imtl": {
            "balancer": {"chain": [{"name": "imtl-l"}, {"name": "imtl-g", "scope": "features"}]}
        },
        "imtl-g": {"balancer": {"name": "imtl-g", "scope": "features"}},
        "imtl-l": {"balancer": {"name": "imtl-l"}},
    }
    found = {}
    for balancer in plugin.mtl_balancers():
        settings = settings_of(balancer.load())
        assert all(setting.meaning for setting in settings)
        found[balancer.name] = {setting.name: setting.default for setting in settings}
    assert found == {"imtl-g": {"scope": "shared"}, "imtl-l": {"initial": 0.0, "lr": None}}


def test_settings_are_checked() -> None:
    assert_settings_are_checked("balancers", "imtl-g", scope=["last_shared"])
    assert_settings_are_checked("balancers", "imtl-l", lr=["fast"])
