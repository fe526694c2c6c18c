"""The records: light to read, complete, and pointing to what exists."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mtlcore.plugins import settings_of
from mtlcore.testing.base import leaves
from mtlcore_atinet import plugin

BACKBONES = {spec.name: spec for spec in plugin.mtl_backbones()}
METHODS = {spec.name: spec for spec in plugin.mtl_methods()}


def test_reading_the_records_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mtlcore_atinet import plugin; "
        "list(plugin.mtl_backbones()); [m.read() for m in plugin.mtl_methods()]; "
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names() -> None:
    assert set(BACKBONES) == {"atinet", "mtan", "padnet", "segnet-deep", "segnet-per-task"}
    methods = {"atinet", "mtan", "padnet", "split", "one-task"}
    assert set(METHODS) == methods | {f"{name}-nyuv2" for name in methods}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_load_and_explain_their_settings(name: str) -> None:
    settings = settings_of(BACKBONES[name].load())
    assert "width" in {setting.name for setting in settings}
    assert all(setting.meaning for setting in settings)


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_the_backbone_that_they_require(name: str) -> None:
    method = METHODS[name]
    preset = method.read()
    backbone = preset["model"]["backbone"]["name"]
    assert backbone in BACKBONES
    assert method.requires == (f"backbones/{backbone}",)
    assert preset["balancer"]["name"] == ("equal" if name.startswith("one-task") else "dwa")


# The paper's recipe for all networks that it compares.
PUBLISHED = {
    "tasks": ["segmentation", "depth", "normals"],
    "data.name": "nyuv2",  # without augmentation
    "model.backbone.width": 1.0,
    "model.head.name": "conv",
    "losses.segmentation.name": "cross-entropy",
    "losses.depth.name": "l1",
    "losses.normals.name": "cosine",
    "balancer.name": "dwa",
    "balancer.temperature": 2.0,
    "optimizer.name": "adam",
    "optimizer.lr": 1e-4,
    "optimizer.schedule.name": "step",
    "optimizer.schedule.at": [0.5],
    "optimizer.schedule.gamma": 0.5,
    "training.batch_size": 2,
    "training.epochs": 200,
    "training.evaluate_every": 1,
    "training.average_last": 10,
}
BACKBONE_OF = {
    "atinet": "atinet",
    "mtan": "mtan",
    "padnet": "padnet",
    "split": "segnet-deep",
    "one-task": "segnet-per-task",
}


@pytest.mark.parametrize("name", BACKBONE_OF)
def test_the_published_recipe(name: str) -> None:
    expected = {**PUBLISHED, "model.backbone.name": BACKBONE_OF[name]}
    if name == "one-task":  # tasks that share nothing have nothing to weigh
        del expected["balancer.temperature"]
        expected["balancer.name"] = "equal"
    preset = METHODS[f"{name}-nyuv2"].read()
    assert {".".join(path): value for path, value in leaves(preset)} == expected


def test_the_papers_half_is_atinets_default() -> None:
    defaults = {s.name: s.default for s in settings_of(BACKBONES["atinet"].load())}
    assert defaults == {
        "width": 1.0,
        "distil_from": 0.5,
        "decoder_input": "distilled",
        "reset": "paper",
        "reset_balancer": False,
    }
