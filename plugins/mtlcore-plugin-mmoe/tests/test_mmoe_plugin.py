"""The records, what settings are refused, and the methods as they are installed."""

from __future__ import annotations

import csv
import gzip
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.config import resolve, set_layer
from mtlcore.errors import ConfigError, MtlError, UsageError
from mtlcore.plugins import Plugins
from mtlcore.runs import try_step
from mtlcore.standard.mlp import MLP
from mtlcore.standard.unet import UNet
from mtlcore.testing import (
    TINY_TASKS,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    tiny_batch,
    tiny_learner,
)
from mtlcore_mmoe.backbones import CGC, PLE, MMoE
from mtlcore_mmoe.gates import Gate

README = Path(__file__).parents[1] / "README.md"
NAMES = [task.name for task in TINY_TASKS]


SMALL = ("data.train=2", "data.val=2", "data.size=32x32", "data.workers=0", "device=cpu")


class TestMMoE(MethodContract):
    method = "mmoe"
    overrides = SMALL


class TestPLE(MethodContract):
    method = "ple"
    overrides = SMALL


def census(folder: Path) -> int:
    """Write some rows in the census's form; return how many values a row makes."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    with gzip.open(folder / "census-income.test.gz", "wt", encoding="utf-8") as file:
        for _ in range(60):
            row = [str(draw.randint(0, 9)) for _ in range(42)]
            row[7] = draw.choice([" Never married", " Divorced"])
            row[41] = draw.choice([" - 50000.", " 50000+."])
            csv.writer(file).writerow(row)
    given = set_layer([f"data.root={folder}"])
    dataset = resolve(Plugins.from_environment(), ["mmoe-census"], [given]).dataset
    assert dataset is not None
    width: int = dataset.component.load().input_width(str(folder), **dataset.settings)
    return width


@pytest.mark.parametrize("method", ["mmoe-census", "ple-census"])
def test_on_the_census_it_learns(method: str, tmp_path: Path) -> None:
    width = census(tmp_path / "census")
    given = [f"data.root={tmp_path / 'census'}", f"model.backbone.inputs={width}", "device=cpu"]
    report = try_step(resolve(Plugins.from_environment(), [method], [set_layer(given)]))
    assert set(report["losses"]) == {"income", "never_married"}


@pytest.mark.slow
def test_a_row_of_the_census_has_as_many_values_as_the_preset_says(real_data: Any) -> None:
    given = set_layer([f"data.root={real_data('census_income')}"])
    config = resolve(Plugins.from_environment(), ["mmoe-census"], [given])
    try_step(config)


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_mmoe.plugin")
    assert_plugin_is_whole("mtlcore_mmoe.plugin")


@pytest.mark.parametrize("name", ["mmoe", "cgc", "ple"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "model.backbone.inputs.*set one of the two"),
        ({"inputs": 3, "encoder": {"name": "resnet"}}, "no more than one"),
        ({"inputs": 0}, "inputs"),
        ({"inputs": 3, "hidden": []}, "hidden"),
        ({"inputs": 3, "gate": {"name": "softmin"}}, "gate.name"),
        ({"inputs": 3, "gate": {"name": "dselect-k", "k": 9}}, r"gate\.k: 9 of"),
        ({"inputs": 3, "gate": {"gamma": 0.0}}, "gate.gamma"),
        ({"encoder": {"name": "unet", "widht": 1.0}}, "widht"),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, MtlError), match=message):
        mtlcore.create("backbones", name, TINY_TASKS, **settings)


@pytest.mark.parametrize("make", [MMoE, CGC, PLE])
def test_what_experts_cannot_read_is_refused(make: Any) -> None:
    vectors = make(TINY_TASKS, inputs=3)
    for wrong in (torch.rand(2, 4), torch.rand(2, 3, 8, 8), {"a": torch.rand(2, 3)}):
        with pytest.raises(UsageError, match=r"model\.backbone\.inputs is 3"):
            vectors(wrong, NAMES)
    images = torch.rand(2, 3, 32, 32)
    with pytest.raises(UsageError, match=r"maps of their own.*decoder=none"):
        make(TINY_TASKS, encoder=partial(UNet, width=1 / 64))(images, NAMES)

    class OfMaps(MLP):
        def forward(self, inputs: Any, tasks: Any) -> Any:
            return mtlcore.models.Features(shared=(inputs[:, :, None, None],))

    with pytest.raises(UsageError, match=r"OfMaps gives features of the shapes"):
        make(TINY_TASKS, encoder=partial(OfMaps, inputs=64))(torch.rand(2, 64), NAMES)


def test_experts_over_another_network_of_vectors() -> None:
    backbone = MMoE(TINY_TASKS, encoder=partial(MLP, inputs=5, hidden=(7,)))
    assert (backbone.input_kind, backbone.out_channels) == ("vector", (7,))
    features = backbone(torch.rand(2, 5), NAMES)
    assert features.of("depth")[0].shape == (2, 7)


def test_terms_of_gates_stand_beside_the_losses_of_tasks() -> None:
    """Five experts, so that there are both of them; of both maps, and of no other gate."""
    encoder = partial(UNet, width=1 / 64, decoder="none", output_stride=8)
    selecting = partial(MMoE, experts=5, gate=Gate(name="dselect-k"), encoder=encoder)
    batch = tiny_batch(2, size=(32, 32))
    assert set(tiny_learner(backbone=selecting)(batch, NAMES).cross) == {
        "gate_entropy",
        "gate_reach",
    }
    weighing = partial(MMoE, experts=5, encoder=encoder)
    assert not tiny_learner(backbone=weighing)(batch, NAMES).cross


@pytest.mark.parametrize("name", ["mmoe", "ple"])
def test_experts_run_in_low_precision(name: str) -> None:
    gate = {"name": "dselect-k"}
    backbone = mtlcore.create("backbones", name, TINY_TASKS, inputs=3, gate=gate)
    with torch.autocast("cpu", torch.bfloat16):
        features = backbone(torch.rand(4, 3), NAMES)
    loss = sum(features.of(task)[0].float().square().sum() for task in NAMES)
    (loss + sum(features.terms.values())).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in backbone.parameters())
