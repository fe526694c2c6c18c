"""The records: light to read, complete, and pointing to what exists."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mtlcore.plugins import settings_of
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


def test_the_papers_half_is_atinets_default() -> None:
    defaults = {s.name: s.default for s in settings_of(BACKBONES["atinet"].load())}
    assert defaults == {
        "width": 1.0,
        "encoder": None,
        "distil_from": 0.5,
        "decoder_input": "distilled",
        "reset": "paper",
        "reset_balancer": False,
    }
