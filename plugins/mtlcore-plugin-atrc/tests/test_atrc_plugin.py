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
from mtlcore.storage import load_checkpoint
from mtlcore.testing import (
    TINY_TASKS,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
)
from mtlcore_atrc import plugin

SMALL = (
    "data.train=4",
    "data.val=2",
    "data.size=32x32",
    "data.workers=0",
    "device=cpu",
    "training.batch_size=2",
    "model.backbone.channels=8",
    "model.backbone.window=3",
)

#: A balancer that fails at a step, after which a run goes on from its last checkpoint.
BREAKER = """
import os

from mtlcore import BalancerSpec, hookimpl


@hookimpl
def mtl_balancers():
    from mtlcore.balancing import LossBalancer

    class Breaks(LossBalancer):
        def transform(self, losses, context):
            if str(context.step) == os.environ.get("MTL_TEST_BREAK"):
                raise RuntimeError("it breaks off")
            return losses

    yield BalancerSpec(name="breaks", target=Breaks)
"""


class TestATRC(MethodContract):
    overrides = (*MethodContract.overrides, "data.size=32x32")
    method = "atrc"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_atrc.plugin")
    assert_plugin_is_whole("mtlcore_atrc.plugin")


def test_names_and_defaults() -> None:
    assert {spec.name for spec in plugin.mtl_methods()} == {
        "atrc",
        "atrc-search-nyud",
        "atrc-nyud",
    }
    (component,) = plugin.mtl_backbones()
    assert {s.name: s.default for s in settings_of(component.load())} == {
        "backbone": REQUIRED,
        "genotype": None,
        "search": 0.5,
        "temperature": 1.0,
        "cold": 0.05,
        "entropy": (-0.02, 0.06),
        "margin": 0.3,
        "rate": 1.0,
        "channels": None,
        "window": 9,
        "labels": 40,
        "dropout": 0.05,
    }


def test_a_run_searches_and_another_one_trains_what_it_found(mtl: Any, tmp_path: Path) -> None:
    sets = [f"--set={one}" for one in (*SMALL, "training.steps=2")]
    search, again = str(tmp_path / "search"), str(tmp_path / "again")
    run = ("run", "--plugin=atrc", *sets)
    first = mtl(*run, "--out", search, "--set=model.backbone.search=1")
    assert first.exit_code == 0, first.output
    found = load_run(Plugins.from_environment(), search, "last").learner.model.backbone
    assert found.get_extra_state()["genotype"] is None
    assert '"backbone/local/depth"' in Path(search, "metrics.jsonl").read_text("utf-8")
    begins = ["--set=model.backbone.search=0", f"--set=initial.run={search}"]
    second = mtl(*run, "--out", again, *begins, "--set=initial.checkpoint=last")
    assert second.exit_code == 0, second.output
    kept = load_run(Plugins.from_environment(), again, "last").learner.model.backbone
    assert kept.get_extra_state()["genotype"] == found.genotype()


@pytest.mark.parametrize(
    "step",
    [pytest.param(3, id="while searching"), pytest.param(7, id="after it", marks=pytest.mark.slow)],
)
def test_a_run_that_breaks_off_goes_on_as_if_nothing_had_happened(
    mtl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Of 8 steps, 2 to an epoch, the fifth begins anew; it goes on after the second or sixth."""
    breaker = tmp_path / "breaker.py"
    breaker.write_text(BREAKER)
    sets = [f"--set={one}" for one in (*SMALL, "training.epochs=4", "training.evaluate_every=1")]
    run = ("run", "--plugin=atrc", f"--plugin={breaker}", *sets, "--set=balancer.name=breaks")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = mtl(*run, "--out", str(whole))
    assert done.exit_code == 0, done.output
    monkeypatch.setenv("MTL_TEST_BREAK", str(step))
    assert mtl(*run, "--out", str(parts)).exit_code != 0
    monkeypatch.delenv("MTL_TEST_BREAK")
    again = mtl(*run, "--resume", "--out", str(parts))
    assert again.exit_code == 0, again.output
    one, other = (
        load_checkpoint(path / "checkpoints" / "last.safetensors") for path in (whole, parts)
    )
    for part in ("learner", "optimizer", "plans", "random"):
        assert_equal_trees(one[part], other[part], part)
    assert one["learner"]["model.backbone._extra_state"]["genotype"] is not None


def assert_equal_trees(one: object, other: object, path: str) -> None:
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal_trees(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal_trees(*pair, f"{path}[{number}]")
    else:
        assert one == other, path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": 1.5}, "search"),
        ({"temperature": 0.0}, "temperature"),
        ({"cold": -1.0}, "cold"),
        ({"margin": 1.0}, "margin"),
        ({"entropy": [0.1]}, "entropy"),
        ({"rate": 0.0}, "rate"),
        ({"channels": 0}, "channels"),
        ({"window": 8}, "window: 8 is even"),
        ({"labels": 1}, "labels"),
        ({"dropout": 1.0}, "dropout"),
        ({"genotype": {"depth": {"normals": "locale"}}}, "genotype.depth.normals"),
        ({"genotype": {"edges": {}}}, "genotype: no task named 'edges'"),
        ({"backbone": {"name": "resnet", "dept": 18}}, "dept"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    given = {"backbone": {"name": "resnet", "depth": 18, "width": 0.125}, **settings}
    with torch.device("meta"), pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "atrc", TINY_TASKS, **given)
