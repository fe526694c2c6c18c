"""Benchmarks that measure times run; what they measure is no matter of a test."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_every_balancer_of_gramians_is_timed(benchmark: Callable[[str], Any]) -> None:
    """Also those of several batches, with settings, and those that are made by a function."""
    balancers = benchmark("balancers")
    names = balancers.of_gramians()
    assert {"nash-mtl", "unit-norm", "sdmgrad", "modo", "rotograd"} <= {*names}
    rows = balancers.solvers(0.0)
    own = {(row["method"], row["case"]) for row in rows if row["library"] == "mtlcore"}
    assert own == {(name, f"solver, K = {count}") for name in names for count in (2, 3, 10, 40)}
    assert "| solver, K = 40 | nash-mtl | mtlcore |" in balancers.table(rows)


def test_loading_reads_all_of_the_files(
    benchmark: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = benchmark("loading")
    monkeypatch.setattr(loading, "SAMPLES", 5)
    loading.draw(tmp_path)
    assert loading.decoded(tmp_path)() == 5 * 5
    for cache in (0, 10):
        epoch = loading.loaded(str(tmp_path), str(loading.SPEC), (24, 32), cache)
        assert epoch() == epoch() == 1  # of eight at most


def test_a_device_is_asked_for_and_waited_for(
    benchmark: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, balancers = benchmark("devices"), benchmark("balancers")
    for name in ("nowhere", "cuda:99"):
        with pytest.raises(argparse.ArgumentTypeError):
            devices.choose(name)
    assert devices.device().type == "cpu"
    assert "processor" in devices.described()
    waited: list[object] = []
    monkeypatch.setattr(devices, "_chosen", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    balancers._timed(lambda: None, 3, lambda: None)
    assert waited == [torch.device("cuda")] * 2, "before the clock starts, and before it stops"
    assert next(iter(balancers.cases())) == "ResNet-50, 3 heads"


@pytest.mark.slow
def test_a_method_is_run_at_the_size_of_its_data(
    benchmark: Callable[[str], Any], tmp_path: Path
) -> None:
    pytest.importorskip("mtlcore_atinet")
    methods = benchmark("methods")
    methods.draw(tmp_path, samples=4, size=(32, 32))
    row = methods.measure("split-nyuv2", tmp_path, 2, {"precision": "fp32"})
    assert row["losses_are_finite"] and row["ms"] > 0 and row["peak_gb"] > 0
