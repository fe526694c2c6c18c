"""The records, and the method as it is installed."""

from __future__ import annotations

import pytest
import torch

import mtlcore
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import REQUIRED, settings_of
from mtlcore.testing import (
    TINY_TASKS,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
)
from mtlcore_mlore import plugin

METHODS = {spec.name: spec for spec in plugin.mtl_methods()}


class TestMLoRE(MethodContract):
    method = "mlore"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_mlore.plugin")
    assert_plugin_is_whole("mtlcore_mlore.plugin")


def test_names_and_defaults() -> None:
    assert set(METHODS) == {"mlore", "mlore-nyud", "mlore-pascal"}
    (backbone,) = plugin.mtl_backbones()
    assert backbone.name == "mlore"
    defaults = {s.name: s.default for s in settings_of(backbone.load())}
    assert defaults == {
        "backbone": REQUIRED,
        "channels": 640,
        "ranks": tuple(range(16, 129, 8)),
        "chosen": 9,
        "task_rank": 64,
        "renormalise": False,
        "load_balancing": 1e-4,
        "grid": (32, 32),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 6}, "channels: 6 must be a multiple of 4"),
        ({"chosen": 0}, "chosen"),
        ({"chosen": 16}, "chosen: 16 experts cannot be chosen of the 15"),
        ({"ranks": [4]}, "ranks"),
        ({"load_balancing": -1.0}, "load_balancing"),
        ({"grid": [0, 3]}, "grid"),
        ({"backbone": {"name": "resnet", "dept": 18}}, "dept"),
        ({"backbone": {"name": "resnet", "depth": 18}}, "pyramid=true"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    given = {"backbone": {"name": "resnet", "depth": 18, "width": 0.0625, "pyramid": True}}
    given |= settings
    with torch.device("meta"), pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "mlore", TINY_TASKS, **given)
