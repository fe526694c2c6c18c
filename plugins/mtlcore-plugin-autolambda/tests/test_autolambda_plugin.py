"""The records, and the method as it is installed."""

from __future__ import annotations

import pytest

import mtlcore
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import settings_of
from mtlcore.testing import MethodContract, assert_plugin_is_light, assert_plugin_is_whole
from mtlcore_autolambda import plugin


class TestAutoLambda(MethodContract):
    method = "auto-lambda"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_autolambda.plugin")
    assert_plugin_is_whole("mtlcore_autolambda.plugin")


def test_names_defaults_and_presets() -> None:
    """The presets touch the balancer only; the defaults are those of the page."""
    presets = {method.name: method.read() for method in plugin.mtl_methods()}
    assert presets == {
        "auto-lambda": {
            "balancer": {"name": "auto-lambda", "lr": 0.0001, "initial": 0.1, "split": "train"}
        }
    }
    found = {}
    for balancer in plugin.mtl_balancers():
        settings = settings_of(balancer.load())
        assert all(setting.meaning for setting in settings)
        found[balancer.name] = {setting.name: setting.default for setting in settings}
    assert found == {"auto-lambda": {"primary": (), "lr": 0.0001, "initial": 0.1, "split": "train"}}


@pytest.mark.parametrize(
    ("setting", "value"),
    [("lr", -0.1), ("initial", float("inf")), ("split", "test")],
)
def test_settings_are_checked(setting: str, value: object) -> None:
    with pytest.raises((ConfigError, MtlError), match=setting):
        mtlcore.create("balancers", "auto-lambda", **{setting: value})
