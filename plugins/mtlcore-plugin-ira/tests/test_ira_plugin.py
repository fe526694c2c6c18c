"""The records, the methods as they are installed, and what a run leaves of the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.config import Layer, file_layer, resolve, set_layer
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import Plugins, settings_of
from mtlcore.storage import load_checkpoint
from mtlcore.testing import MethodContract, assert_plugin_is_light
from mtlcore_ira import plugin
from mtlcore_ira.balancer import IRA

TINY: dict[str, Any] = {
    "device": "cpu",
    "data": {"train": 6, "val": 2, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.0625}},
    "training": {"batch_size": 2, "epochs": 4},
}


class TestMethod(MethodContract):
    method = "ira"


class TestOnNYUv2(MethodContract):
    method = "ira-nyuv2"
    needs_files = True


class TestOnCityscapes(MethodContract):
    method = "ira-cityscapes"
    needs_files = True


class TestOnVirtualKITTI(MethodContract):
    method = "ira-vkitti"
    needs_files = True


def test_is_light() -> None:
    assert_plugin_is_light("mtlcore_ira.plugin")


def test_settings_have_meanings_and_our_defaults() -> None:
    (balancer,) = plugin.mtl_balancers()
    settings = {setting.name: setting for setting in settings_of(balancer.load())}
    assert all(setting.meaning for setting in settings.values())
    found = {name: settings[name].default for name in ("ratio_aux", "clip", "eps", "alpha")}
    assert found == {"ratio_aux": "unweighted", "clip": 10.0, "eps": 1e-8, "alpha": 2e-4}


@pytest.mark.parametrize("dataset", ["nyuv2", "cityscapes", "vkitti"])
def test_the_main_task_is_chosen_by_setting(dataset: str) -> None:
    turned = resolve(
        Plugins.from_environment(),
        [f"ira-{dataset}"],
        [set_layer(["balancer.main=segmentation"])],
    )
    assert turned.tree["balancer"]["main"] == "segmentation"


def test_it_cannot_lose_its_balancer() -> None:
    with pytest.raises(ConfigError, match="ira"):
        resolve(Plugins.from_environment(), ["ira"], [set_layer(["balancer.name=equal"])])


def test_the_literal_reading_can_be_written_down(tmp_path: Path) -> None:
    literal = ["balancer.ratio_aux=weighted", "balancer.clip=inf", "training.epochs=1"]
    config = resolve(Plugins.from_environment(), ["ira"], [Layer("test", TINY), set_layer(literal)])
    mtlcore.run(config, out=str(tmp_path / "run"))
    again = resolve(
        Plugins.from_environment(), (), [file_layer(str(tmp_path / "run" / "config.toml"))]
    )
    assert again.tree["balancer"] == config.tree["balancer"]
    assert again.tree["balancer"]["clip"] == math.inf


def test_without_a_run() -> None:
    assert isinstance(mtlcore.create("balancers", "ira", main="depth"), IRA)
    with pytest.raises(MtlError, match="main"):
        mtlcore.create("balancers", "ira")


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def series(folder: Path, task: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in records(folder):
        if record["metric"].startswith("weight/") and record["task"] == task:
            found.setdefault(record["metric"].removeprefix("weight/"), []).append(record["value"])
    return found


def test_weights_are_recorded_by_class_and_drawn(tmp_path: Path) -> None:
    config = {**TINY, "balancer": {"alpha": 0.05, "warmup": 0.25}}
    summary = mtlcore.run(config, plugins=["ira"], out=str(tmp_path / "run"))
    assert summary["steps"] == 12
    assert summary["skipped_steps"] == 0
    weights = series(tmp_path / "run", "segmentation")
    names = [task.class_names for task in resolve(Plugins.from_environment(), ["ira"]).tasks]
    assert tuple(weights) == names[0]
    assert {len(values) for values in weights.values()} == {12}
    assert all(values[:4] == [1.0] * 4 for values in weights.values())
    assert any(values[-1] != 1 for values in weights.values())
    assert all(math.isfinite(value) for values in weights.values() for value in values)
    assert not any(record["metric"] == "weight" for record in records(tmp_path / "run"))
    drawn = (tmp_path / "run" / "report" / "weights.svg").read_text("utf-8")
    assert "Weights of segmentation by class" in drawn
    assert all(f">{name}</text>" in drawn for name in names[0])


def test_depth_as_the_auxiliary_task_after_the_roles_change(tmp_path: Path) -> None:
    balancer = {"alpha": 0.05, "warmup": 0.0, "swap_at": 0.5, "bins": 3}
    mtlcore.run({**TINY, "balancer": balancer}, plugins=["ira"], out=str(tmp_path / "run"))
    before = series(tmp_path / "run", "segmentation")
    after = series(tmp_path / "run", "depth")
    assert {len(values) for values in before.values()} == {6}
    assert {len(values) for values in after.values()} == {6}
    assert [name.partition(":")[0] for name in after] == ["1", "2", "3"]
    assert all(name.endswith(" m") for name in after)
    assert any(values[-1] != 1 for values in after.values())


def test_accumulates(tmp_path: Path) -> None:
    config = {**TINY, "training": {"batch_size": 2, "epochs": 4, "accumulate": 3}}
    config["balancer"] = {"alpha": 0.05, "warmup": 0.0}
    summary = mtlcore.run(config, plugins=["ira"], out=str(tmp_path / "run"))
    assert summary["steps"] == 4
    weights = series(tmp_path / "run", "segmentation")
    assert any(values[-1] != 1 for values in weights.values())


def test_in_a_chain_before_a_balancer_of_gradients(tmp_path: Path) -> None:
    """Weights of classes are recorded beside those of tasks."""
    chain = [{"name": "ira", "main": "depth", "alpha": 0.05}, {"name": "fixed", "weights": {}}]
    config = {**TINY, "tasks": ["segmentation", "depth"], "balancer": {"chain": chain}}
    mtlcore.run(config, out=str(tmp_path / "run"))
    assert len(series(tmp_path / "run", "segmentation")) == 13


@pytest.mark.parametrize("step", [2, 7])
def test_stopped_and_resumed_it_ends_bit_for_bit_the_same(
    stopped_and_resumed: Callable[..., tuple[Path, Path]], step: int
) -> None:
    """Within a time unit, before and after the change of roles."""
    ira = {"name": "ira", "main": "depth", "alpha": 0.05, "every": 2, "swap_at": 0.5, "bins": 3}
    runs = stopped_and_resumed({**TINY, "tasks": ["segmentation", "depth"], "balancer": ira}, step)
    whole, stopped = (
        load_checkpoint(run / "checkpoints" / "last.safetensors")["learner"] for run in runs
    )
    assert whole.keys() == stopped.keys()
    tensors = {name: value for name, value in whole.items() if isinstance(value, torch.Tensor)}
    assert all(torch.equal(value, stopped[name]) for name, value in tensors.items())
    moved = [name for name in tensors if name.endswith("weight") and "phases.1" in name]
    assert moved
    assert not torch.equal(whole[moved[0]], torch.ones_like(whole[moved[0]]))
    for task in ("segmentation", "depth"):
        assert series(runs[0], task) == series(runs[1], task)
