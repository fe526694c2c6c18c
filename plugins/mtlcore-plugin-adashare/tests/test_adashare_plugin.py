"""The records, the settings, the methods as they are installed, and steps that take turns."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import REQUIRED, Plugins, settings_of
from mtlcore.runs import load_run
from mtlcore.standard.optimizers import adam
from mtlcore.standard.resnet import ResNet
from mtlcore.testing import (
    TINY_TASKS,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    tiny_batch,
    tiny_learner,
)
from mtlcore_adashare import plugin
from mtlcore_adashare.backbone import AdaShare

SMALL = ("data.train=4", "data.val=2", "data.size=32x32", "data.workers=0", "device=cpu")


class TestAdaShare(MethodContract):
    overrides = (*MethodContract.overrides, "data.size=32x32")
    method = "adashare"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_adashare.plugin")
    assert_plugin_is_whole("mtlcore_adashare.plugin")


def test_names_and_defaults() -> None:
    assert {spec.name for spec in plugin.mtl_methods()} == {
        "adashare",
        "adashare-nyuv2",
        "adashare-retrain-nyuv2",
    }
    (component,) = plugin.mtl_backbones()
    assert {s.name: s.default for s in settings_of(component.load())} == {
        "encoder": REQUIRED,
        "search": 0.5,
        "warmup": 0.2,
        "curriculum": 0.07,
        "temperature": 5.0,
        "cold": 0.02,
        "sparsity": 0.05,
        "sharing": 0.05,
        "rate": 10.0,
        "decay": 5e-4,
    }


def weights(run: str) -> dict[str, torch.Tensor]:
    learner = load_run(Plugins.from_environment(), run, "last").learner
    return {name: p.detach() for name, p in learner.named_parameters()}


def test_steps_learn_weights_and_policies_in_turn() -> None:
    resnet = partial(ResNet, depth=18, width=1 / 8, output_stride=8)
    made = partial(AdaShare, encoder=resnet, search=1.0, warmup=0.0)
    learner = tiny_learner(backbone=made)
    optimizer = adam(learner, lr=0.005)
    plan = LoadedPlan((tiny_batch(2, size=(32, 32)),), (Episode(learner.tasks, 0),))
    for number in range(4):
        learner.model.backbone.at_progress(number / 4)
        before = {name: p.detach().clone() for name, p in learner.named_parameters()}
        optimizer.step(learner, plan)
        now = dict(learner.named_parameters())
        moved = {name for name, x in before.items() if not torch.equal(x, now[name])}
        policies = {name for name in before if name.endswith(".logits")}
        if number % 2:
            assert moved == policies
        else:
            assert not moved & policies
            assert any(name.startswith("model.heads.") for name in moved)
            assert any(name.startswith("model.backbone.") for name in moved)


def test_a_run_searches_and_another_one_trains_what_it_found(mtl: Any, tmp_path: Path) -> None:
    sets = [f"--set={one}" for one in (*SMALL, "training.steps=4", "training.batch_size=2")]
    search, again = str(tmp_path / "search"), str(tmp_path / "again")
    run = ("run", "--plugin=adashare", *sets)
    first = mtl(*run, "--out", search, "--set=model.backbone.search=1")
    assert first.exit_code == 0, first.output
    assert '"backbone/run/0"' in Path(search, "metrics.jsonl").read_text("utf-8")
    begins = ["--set=model.backbone.search=0", f"--set=initial.run={search}"]
    second = mtl(*run, "--out", again, *begins, "--set=initial.checkpoint=last")
    assert second.exit_code == 0, second.output
    kept = load_run(Plugins.from_environment(), again, "last").learner.model.backbone
    assert {chance for row in kept.policies().values() for chance in row} <= {0.0, 1.0}
    one, other = weights(search), weights(again)
    for name, x in one.items():
        assert torch.equal(x, other[name]) is name.endswith(".logits") or x.numel() == 1, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": -0.1}, "search"),
        ({"warmup": 1.0}, "warmup"),
        ({"curriculum": 2.0}, "curriculum"),
        ({"temperature": 0.0}, "temperature"),
        ({"cold": 0.0}, "cold"),
        ({"sparsity": -1.0}, "sparsity"),
        ({"sharing": -1.0}, "sharing"),
        ({"rate": 0.0}, "rate"),
        ({"decay": -1.0}, "decay"),
        ({"encoder": {"name": "resnet", "dept": 18}}, "dept"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    given = {"encoder": {"name": "resnet", "depth": 18, "width": 0.125}, **settings}
    with torch.device("meta"), pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", "adashare", TINY_TASKS, **given)
