"""The records, the methods as they are installed, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mtlcore
from mtlcore.config import Layer, RunConfig, resolve
from mtlcore.errors import ConfigError, UsageError
from mtlcore.plugins import Plugins, settings_of
from mtlcore.runs import count_method_parameters, try_step
from mtlcore.testing import MethodContract, assert_plugin_is_light
from mtlcore.testing.base import leaves
from mtlcore_mtml import plugin

TASKS = ["segmentation", "depth", "normals", "edges"]
TINY: dict[str, Any] = {
    "tasks": TASKS,
    "device": "cpu",
    "data": {"name": "rooms", "train": 6, "val": 2, "size": [32, 32], "workers": 0},
    "training": {"batch_size": 2, "epochs": 2},
}


class TestMTML(MethodContract):
    method = "mtml"


class TestNYUv2(MethodContract):
    method = "mtml-nyuv2"
    needs_files = True


class TestTaskonomy(MethodContract):
    method = "mtml-taskonomy"
    needs_files = True


def resolved(values: dict[str, Any], *selected: str) -> RunConfig:
    plugins = Plugins.from_environment()
    return resolve(plugins, selected, [Layer("test", values)])


def test_is_light() -> None:
    assert_plugin_is_light("mtlcore_mtml.plugin")


def test_every_setting_has_a_meaning() -> None:
    records = [*plugin.mtl_episode_samplers(), *plugin.mtl_optimizers(), *plugin.mtl_heads()]
    for record in records:
        assert all(setting.meaning for setting in settings_of(record.load())), record.name


@pytest.mark.parametrize(
    ("method", "total", "segmentation"),
    [("mtml-nyuv2", 88_022_128, 16_135_977), ("mtml-taskonomy", 88_015_960, 16_129_809)],
)
def test_the_published_networks_have_the_published_size(
    method: str, total: int, segmentation: int
) -> None:
    counts = count_method_parameters(Plugins.from_environment(), method)
    assert counts["total"] == total
    assert counts["shared"] == 23_508_032
    assert counts["tasks"] == {
        "segmentation": segmentation,
        "depth": 16_125_697,
        "normals": 16_126_211,
        "edges": 16_126_211,
    }
    assert counts["components"] == {"losses": 0, "cross_task": 0, "balancers": 4}


def presets() -> dict[str, dict[str, Any]]:
    """Per method the values of its preset by their dotted keys."""
    return {
        spec.name: {".".join(path): value for path, value in leaves(spec.read())}
        for spec in plugin.mtl_methods()
    }


def test_on_rooms_the_method_is_the_published_one() -> None:
    """Only its network and what goes with its size are other ones."""
    every = presets()
    for setting in ("tasks", "balancer.name", "balancer.form", "episodes.name", "optimizer.name"):
        assert every["mtml"][setting] == every["mtml-nyuv2"][setting]


@pytest.mark.slow
def test_the_published_network_takes_a_step() -> None:
    """On rendered rooms, small ones, with the rest as it is."""
    values = {
        "data": {**TINY["data"], "train": 8, "val": 2, "size": [64, 64]},
        "device": "cpu",
        "episodes": {"episodes": 1},
        "training": {"batch_size": 2},
    }
    report = try_step(resolved(values, "mtml-taskonomy"))
    assert set(report["losses"]) <= set(TASKS)
    assert report["losses"]


# Runs


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_trains_and_repeats(tmp_path: Path) -> None:
    summaries = [
        mtlcore.run(TINY, plugins=["mtml"], out=str(tmp_path / name)) for name in ("one", "two")
    ]
    assert summaries[0]["skipped_steps"] == 0
    assert summaries[0]["steps"] == 4
    assert summaries[0]["final"] == summaries[1]["final"]
    losses = {r["task"] for r in records(tmp_path / "one") if r["metric"] == "loss"}
    assert losses == set(TASKS)


def test_a_task_that_stops_early_leaves_the_episodes(tmp_path: Path) -> None:
    """The learning rate is such that not every task gets better in every epoch."""
    values = {
        **TINY,
        "optimizer": {"lr": 10.0, "weight_decay": 0.0},
        "training": {**TINY["training"], "epochs": 6, "task_patience": 1},
    }
    summary = mtlcore.run(values, plugins=["mtml"], out=str(tmp_path / "run"))
    stopped = summary["stopped"]["tasks"]
    assert stopped
    losses = [
        r for r in records(tmp_path / "run") if (r["split"], r["metric"]) == ("train", "loss")
    ]
    for task, epoch in stopped.items():
        assert not [r for r in losses if r["task"] == task and r["epoch"] > epoch]


def test_the_sampler_goes_with_a_plain_optimizer() -> None:
    values = {**TINY, "episodes": {"name": "task-powerset"}, "optimizer": {"name": "adamw"}}
    assert set(try_step(resolved(values))["losses"]) == set(TASKS)


def test_the_optimizer_needs_queries() -> None:
    config = resolved({**TINY, "optimizer": {"name": "mtml"}})
    with pytest.raises(UsageError, match="joint plans no query batches"):
        try_step(config)


def test_one_task_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="episodes of two or more tasks, and the run has one"):
        try_step(resolved({**TINY, "tasks": TASKS[:1]}, "mtml"))


@pytest.mark.parametrize("chosen", [TASKS[:2], TASKS[2:]])
def test_two_source_tasks_are_one_episode(chosen: list[str], tmp_path: Path) -> None:
    """Experiments 4.1 and 4.2: meta-learnt on two tasks alone; a third may join afterwards."""
    values = {**TINY, "tasks": chosen}
    summary = mtlcore.run(values, plugins=["mtml"], out=str(tmp_path / "two"))
    assert summary["steps"] == 4
    assert summary["skipped_steps"] == 0
    trained = {(r["task"], r["step"]) for r in records(tmp_path / "two") if r["split"] == "train"}
    assert {task for task, _ in trained if task} >= set(chosen)
    joined = {**TINY, "initial": {"run": str(tmp_path / "two"), "new": []}}
    added = [task for task in TASKS if task not in chosen][:1]
    joined = {**joined, "tasks": [*chosen, *added]}
    joined["initial"]["new"] = added
    again = mtlcore.run(joined, plugins=["mtml"], out=str(tmp_path / "three"))
    assert set(again["final"]["val"]) == {*chosen, *added}


@pytest.mark.parametrize("method", ["mtml-nyuv2", "mtml-taskonomy"])
def test_the_published_methods_take_two_tasks(method: str) -> None:
    config = resolved({"tasks": TASKS[:2], "data": {"root": "somewhere"}}, method)
    assert set(config.losses) == set(config.metrics) == set(TASKS[:2])


@pytest.mark.parametrize("lost", [{"optimizer": {"name": "adam"}}, {"episodes": {"name": "joint"}}])
def test_the_method_is_not_itself_without_its_parts(lost: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="method 'mtml' is not itself without"):
        resolved({**TINY, **lost}, "mtml")


@pytest.mark.parametrize(
    "optimizer",
    [{"second_order": True}, {"restore": False}, {"inner_scope": "heads+norm", "inner_steps": 2}],
)
def test_its_variants_train(optimizer: dict[str, Any]) -> None:
    report = try_step(resolved({**TINY, "optimizer": optimizer}, "mtml"))
    assert set(report["losses"]) == set(TASKS)
    # Query batches are judged at another point than in the method as it is.
    plain = try_step(resolved(TINY, "mtml"))
    assert (report["losses"] == plain["losses"]) == ("second_order" in optimizer)


def test_a_setting_that_makes_no_sense_is_a_message() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.inner_scope"):
        resolved({**TINY, "optimizer": {"inner_scope": "trunk"}}, "mtml")
    with pytest.raises(UsageError, match=r"optimizer\.inner_lr"):
        try_step(resolved({**TINY, "optimizer": {"inner_lr": -1.0}}, "mtml"))
