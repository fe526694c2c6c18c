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
from mtlcore_invpt import plugin

METHODS = {spec.name: spec for spec in plugin.mtl_methods()}


class TestInvPT(MethodContract):
    method = "invpt"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_invpt.plugin")
    assert_plugin_is_whole("mtlcore_invpt.plugin")


def test_names_and_defaults() -> None:
    assert set(METHODS) == {"invpt", "invpt-nyud", "invpt-pascal"}
    (backbone,) = plugin.mtl_backbones()
    assert backbone.name == "invpt"
    defaults = {s.name: s.default for s in settings_of(backbone.load())}
    assert defaults == {"backbone": REQUIRED, "preliminary": 512, "channels": 576}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preliminary": 0}, "preliminary"),
        ({"channels": 12}, "channels: 12 must be a multiple of 8"),
        ({"backbone": {"name": "resnet", "dept": 18}}, "dept"),
        ({"backbone": {"name": "resnet", "depth": 18}}, "pyramid=true"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    given = {"backbone": {"name": "resnet", "depth": 18, "width": 0.0625, "pyramid": True}}
    given |= settings
    with torch.device("meta"), pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "invpt", TINY_TASKS, **given)
