"""The records, and the method as it is installed."""

from __future__ import annotations

import pytest

import mtlcore
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import settings_of
from mtlcore.testing import MethodContract, assert_plugin_is_light, assert_plugin_is_whole
from mtlcore_sdmgrad import plugin


class TestSdmgrad(MethodContract):
    method = "sdmgrad"
    overrides = (*MethodContract.overrides, "data.train=6")


class TestModo(MethodContract):
    method = "modo"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_sdmgrad.plugin")
    assert_plugin_is_whole("mtlcore_sdmgrad.plugin")


def test_names_defaults_and_presets() -> None:
    """The presets touch the balancer only; the defaults are those of the page."""
    presets = {method.name: method.read() for method in plugin.mtl_methods()}
    assert presets == {
        "sdmgrad": {"balancer": {"name": "sdmgrad", "lam": 0.3, "batches": 3}},
        "modo": {"balancer": {"name": "modo", "gamma": 0.1, "rho": 0.1}},
    }
    found = {}
    for balancer in plugin.mtl_balancers():
        settings = settings_of(balancer.load())
        assert all(setting.meaning for setting in settings)
        found[balancer.name] = {setting.name: setting.default for setting in settings}
    assert found == {"sdmgrad": {"lam": 0.3, "batches": 3}, "modo": {"gamma": 0.1, "rho": 0.1}}


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("sdmgrad", "lam", -1.0),
        ("sdmgrad", "batches", 2),
        ("modo", "gamma", -1.0),
        ("modo", "rho", -1.0),
    ],
)
def test_settings_are_checked(name: str, setting: str, value: object) -> None:
    with pytest.raises((ConfigError, MtlError), match=setting):
        mtlcore.create("balancers", name, **{setting: value})
