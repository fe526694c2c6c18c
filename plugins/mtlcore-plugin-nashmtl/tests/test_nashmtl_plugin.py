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
from mtlcore_nashmtl import plugin
from mtlcore_nashmtl.balancer import NashMTL

TINY: dict[str, Any] = {
    "tasks": ["segmentation", "depth", "normals"],
    "device": "cpu",
    "data": {"train": 4, "val": 2, "size": [32, 32], "workers": 0},
    "training": {"batch_size": 2, "epochs": 2},
}


class TestMethod(MethodContract):
    method = "nashmtl"


def test_is_light() -> None:
    assert_plugin_is_light("mtlcore_nashmtl.plugin")


def test_the_preset_touches_the_balancer_only_and_has_the_published_values() -> None:
    (method,) = plugin.mtl_methods()
    (balancer,) = plugin.mtl_balancers()
    assert method.read() == {
        "balancer": {
            "name": balancer.name,
            "max_norm": 1.0,
            "weigh_heads": True,
            "update_every": 1,
        }
    }
    settings = settings_of(balancer.load())
    assert {s.name: s.default for s in settings} == {"max_norm": None, "weigh_heads": False}
    assert all(s.meaning for s in settings)


def test_without_a_run() -> None:
    balancer = mtlcore.create("balancers", "nash-mtl", max_norm=1)
    assert isinstance(balancer, NashMTL)
    gramian = 4 * torch.eye(4, dtype=torch.float64)
    assert balancer.weights(gramian).tolist() == pytest.approx([0.25] * 4)
    balancer = mtlcore.create("balancers", "nash-mtl")
    assert balancer.weights(gramian).tolist() == pytest.approx([0.5] * 4)
    with pytest.raises(ConfigError, match="max_norm"):
        mtlcore.create("balancers", "nash-mtl", max_norm="one")


def weights_recorded(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [record["value"] for record in records if record["metric"] == "weight"]


def test_trains(tmp_path: Path) -> None:
    summary = mtlcore.run(TINY, plugins=["nashmtl"], out=str(tmp_path / "run"))
    assert summary["steps"] == 4
    assert summary["skipped_steps"] == 0
    weights = weights_recorded(tmp_path / "run")
    assert len(weights) == 3 * 4
    assert all(weight > 0 for weight in weights)
