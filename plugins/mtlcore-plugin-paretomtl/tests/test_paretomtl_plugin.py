"""The records, and the method as it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import settings_of
from mtlcore.testing import MethodContract, assert_plugin_is_light
from mtlcore_paretomtl import plugin
from mtlcore_paretomtl.balancer import ParetoMTL

TINY: dict[str, Any] = {
    "tasks": ["segmentation", "depth"],
    "device": "cpu",
    "data": {"train": 4, "val": 2, "size": [32, 32], "workers": 0},
    "training": {"batch_size": 2, "epochs": 2},
}


class TestMethod(MethodContract):
    method = "paretomtl"


def test_is_light() -> None:
    assert_plugin_is_light("mtlcore_paretomtl.plugin")


def test_the_preset_touches_the_balancer_only_and_has_the_authors_values() -> None:
    """Five preferences, and 2 of 100 epochs to find a start; their weights multiply the losses."""
    (method,) = plugin.mtl_methods()
    (balancer,) = plugin.mtl_balancers()
    preset = {"name": balancer.name, "preferences": 5, "initial": 0.02, "weigh_heads": True}
    assert method.read() == {"balancer": preset}
    settings = settings_of(balancer.load())
    assert {s.name: s.default for s in settings} == {
        "preferences": 5,
        "preference": None,
        "initial": 0.2,
        "weigh_heads": False,
    }
    assert all(s.meaning for s in settings)


def test_without_a_run() -> None:
    balancer = mtlcore.create("balancers", "pareto-mtl", preferences=3, preference=0)
    assert isinstance(balancer, ParetoMTL)
    assert balancer.weights(torch.eye(4, dtype=torch.float64)).tolist() == pytest.approx([1.0] * 4)
    with pytest.raises(ConfigError, match="preference"):
        mtlcore.create("balancers", "pareto-mtl", preference="first")


def records(folder: Path, metric: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [found for found in map(json.loads, lines) if found["metric"] == metric]


def test_preferences_train_differently(tmp_path: Path) -> None:
    found = {}
    for preference in (0, 4):
        out = tmp_path / str(preference)
        settings = {**TINY, "balancer": {"preference": preference}}
        summary = mtlcore.run(settings, plugins=["paretomtl"], out=str(out))
        assert summary["steps"] == 4
        assert summary["skipped_steps"] == 0
        found[preference] = [record["value"] for record in records(out, "weight")]
        assert len(found[preference]) == 2 * 4
        assert sum(map(abs, found[preference])) == pytest.approx(2 * 4)
    assert found[0] != found[4]


def test_a_preference_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    settings = {**TINY, "balancer": {"preference": 5}}
    with pytest.raises(MtlError, match=r"balancer\.preference: 5 is not from 0 to 4"):
        mtlcore.run(settings, plugins=["paretomtl"], out=str(tmp_path / "run"))
