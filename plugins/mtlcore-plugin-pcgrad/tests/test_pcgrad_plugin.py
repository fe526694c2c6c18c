"""The records, and the method as it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.errors import ConfigError
from mtlcore.plugins import settings_of
from mtlcore.testing import MethodContract, assert_plugin_is_light
from mtlcore_pcgrad import plugin
from mtlcore_pcgrad.balancer import PCGrad

TINY: dict[str, Any] = {
    "tasks": ["segmentation", "depth", "normals"],
    "device": "cpu",
    "data": {"train": 4, "val": 2, "size": [32, 32], "workers": 0},
    "training": {"batch_size": 2, "epochs": 2},
}


class TestMethod(MethodContract):
    method = "pcgrad"


def test_is_light() -> None:
    assert_plugin_is_light("mtlcore_pcgrad.plugin")


def test_the_preset_touches_the_balancer_only_and_is_the_papers_algorithm() -> None:
    """Others in random order, and the sum of what is projected (Algorithm 1)."""
    (method,) = plugin.mtl_methods()
    (balancer,) = plugin.mtl_balancers()
    assert balancer.name == method.name == "pcgrad"
    assert method.read() == {"balancer": {"name": "pcgrad", "reduction": "sum", "order": "random"}}
    settings = settings_of(balancer.load())
    assert {s.name: s.default for s in settings} == {"reduction": "sum", "order": "random"}
    assert all(s.meaning for s in settings)


def test_without_a_run() -> None:
    balancer = mtlcore.create("balancers", "pcgrad", reduction="mean")
    assert isinstance(balancer, PCGrad)
    assert balancer.weights(torch.eye(3)).tolist() == pytest.approx([1 / 3] * 3)
    with pytest.raises(ConfigError, match="reduction"):
        mtlcore.create("balancers", "pcgrad", reduction="average")


def weights_recorded(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [record["value"] for record in records if record["metric"] == "weight"]


def test_trains(tmp_path: Path) -> None:
    summary = mtlcore.run(TINY, plugins=["pcgrad"], out=str(tmp_path / "run"))
    assert summary["steps"] == 4
    assert summary["skipped_steps"] == 0
    weights = weights_recorded(tmp_path / "run")
    assert len(weights) == 3 * 4
    assert all(weight >= 1 for weight in weights)  # projections only add
