"""The records, and the method as it is installed."""

from __future__ import annotations

from mtlcore.plugins import settings_of
from mtlcore.testing import (
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    assert_settings_are_checked,
)
from mtlcore_mgda import plugin


class TestMgda(MethodContract):
    method = "mgda"


class TestMgdaUb(MethodContract):
    method = "mgda-ub"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_mgda.plugin")
    assert_plugin_is_whole("mtlcore_mgda.plugin")


def test_names_defaults_and_presets() -> None:
    """The presets touch the balancer only; the defaults are those of the page."""
    presets = {method.name: method.read() for method in plugin.mtl_methods()}
    assert presets == {
        "mgda": {
            "balancer": {
                "name": "mgda",
                "scope": "shared",
                "normalise": "none",
                "weigh_heads": True,
            }
        },
        "mgda-ub": {
            "balancer": {
                "name": "mgda",
                "scope": "features",
                "normalise": "none",
                "weigh_heads": True,
            }
        },
    }
    found = {}
    for balancer in plugin.mtl_balancers():
        settings = settings_of(balancer.load())
        assert all(setting.meaning for setting in settings)
        found[balancer.name] = {setting.name: setting.default for setting in settings}
    assert found == {"mgda": {"normalise": "none", "scope": "shared", "weigh_heads": False}}


def test_settings_are_checked() -> None:
    assert_settings_are_checked("balancers", "mgda", normalise=["l1"], scope=["last_shared"])
