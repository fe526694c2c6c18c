"""The records, and the method as it is installed."""

from __future__ import annotations

import pytest

import mtlcore
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import settings_of
from mtlcore.testing import MethodContract, assert_plugin_is_light, assert_plugin_is_whole
from mtlcore_stch import plugin


class TestStch(MethodContract):
    method = "stch"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_stch.plugin")
    assert_plugin_is_whole("mtlcore_stch.plugin")


def test_names_defaults_and_presets() -> None:
    """The presets touch the balancer only; the defaults are those of the page."""
    presets = {method.name: method.read() for method in plugin.mtl_methods()}
    assert presets == {
        "stch": {"balancer": {"name": "stch", "form": "log", "mu": 1.0, "warmup": 4}}
    }
    found = {}
    for balancer in plugin.mtl_balancers():
        settings = settings_of(balancer.load())
        assert all(setting.meaning for setting in settings)
        found[balancer.name] = {setting.name: setting.default for setting in settings}
    assert found == {
        "stch": {"form": "log", "mu": 1.0, "warmup": 4, "preferences": None, "references": None}
    }


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mu", 0.0),
        ("mu", -1.0),
        ("warmup", -1),
        ("form", "paper"),
        ("preferences", {"depth": 0.0}),
        ("references", {"depth": 1.0}),
    ],
)
def test_settings_are_checked(setting: str, value: object) -> None:
    with pytest.raises((ConfigError, MtlError), match=setting):
        mtlcore.create("balancers", "stch", **{setting: value})
