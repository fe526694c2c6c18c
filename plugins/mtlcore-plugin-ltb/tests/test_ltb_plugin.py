"""The records, the settings, and the methods as they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import REQUIRED, Plugins, settings_of
from mtlcore.runs import load_run
from mtlcore.testing import (
    TINY_TASKS,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
)
from mtlcore_ltb import plugin

SMALL = ("data.train=2", "data.val=2", "data.size=32x32", "data.workers=0", "device=cpu")


class TestLTB(MethodContract):
    overrides = (*MethodContract.overrides, "data.size=32x32")
    method = "ltb"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_ltb.plugin")
    assert_plugin_is_whole("mtlcore_ltb.plugin")


def test_names_and_defaults() -> None:
    assert {spec.name for spec in plugin.mtl_methods()} == {"ltb", "ltb-nyuv2", "ltb-tree-nyuv2"}
    (component,) = plugin.mtl_backbones()
    assert {s.name: s.default for s in settings_of(component.load())} == {
        "backbone": REQUIRED,
        "exchange_at": None,
        "search": 0.5,
        "warmup": 0.01,
        "temperature": 10.0,
        "cold": 0.7,
        "rate": 1.0,
        "tree": None,
    }


def test_a_run_searches_and_another_one_trains_its_tree(mtl: Any, tmp_path: Path) -> None:
    sets = [f"--set={one}" for one in (*SMALL, "training.steps=2", "training.batch_size=2")]
    search, tree = str(tmp_path / "search"), str(tmp_path / "tree")
    run = ("run", "--plugin=ltb", *sets)
    first = mtl(*run, "--out", search, "--set=model.backbone.search=1")
    assert first.exit_code == 0, first.output
    found = load_run(Plugins.from_environment(), search, "last").learner.model.backbone
    assert found.get_extra_state() == {"tree": None}
    lines = Path(search, "metrics.jsonl").read_text("utf-8")
    assert '"backbone/branch/0"' in lines
    begins = ["--set=model.backbone.search=0", f"--set=initial.run={search}"]
    second = mtl(*run, "--out", tree, *begins, "--set=initial.checkpoint=last")
    assert second.exit_code == 0, second.output
    kept = load_run(Plugins.from_environment(), tree, "last").learner.model.backbone
    assert kept.get_extra_state() == {"tree": found.tree()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": 1.5}, "search"),
        ({"warmup": 1.0}, "warmup"),
        ({"temperature": 0.0}, "temperature"),
        ({"cold": -1.0}, "cold"),
        ({"rate": 0.0}, "rate"),
        ({"tree": [[0, -1, 0]]}, "tree"),
        ({"tree": [[0, 0, 0]]}, "it needs 5 rows"),
        ({"exchange_at": [9]}, "exchange_at"),
        ({"backbone": {"name": "resnet", "dept": 18}}, "dept"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    given = {"backbone": {"name": "resnet", "depth": 18, "width": 0.125}, **settings}
    with torch.device("meta"), pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "ltb", TINY_TASKS, **given)
