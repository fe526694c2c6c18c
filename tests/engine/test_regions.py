"""Metrics in the regions of another task's classes: their values, their tables, what they leave."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.config import resolve, set_layer
from mtlcore.errors import ConfigError
from mtlcore.metrics import RegionalMetric, is_regional
from mtlcore.plugins import Plugins
from mtlcore.results import compare, tables_of
from mtlcore.standard.metrics import DepthMetric
from mtlcore.tasks import Task
from mtlcore.testing import tiny_batch

DEPTH = Task(name="depth", kind="depth", channels=1, unit="m")
CLASSES = Task(
    name="segmentation", kind="segmentation", channels=3, class_names=("wall", "floor", "sky")
)
TINY: dict[str, Any] = {
    "tasks": ["segmentation", "depth"],
    "device": "cpu",
    "data": {"name": "rooms", "train": 4, "val": 3, "size": [32, 32], "workers": 0},
    "training": {"batch_size": 2, "epochs": 1},
    "metrics": {"depth": {"name": "depth", "regions": "segmentation"}},
}


def batches(number: int = 3):
    found = []
    for seed in range(number):
        batch = tiny_batch(2, tasks=(DEPTH, CLASSES), seed=seed)
        batch.targets["segmentation"][batch.targets["segmentation"] == 2] = 1  # there is no sky
        found.append((batch, torch.rand(batch.targets["depth"].shape)))
    return found


def seen(metric: RegionalMetric, given: Any) -> RegionalMetric:
    for batch, prediction in given:
        metric.see(batch)
        metric.update(prediction, batch.targets["depth"], batch.valid["depth"])
    return metric


def test_a_region_is_where_the_labels_have_the_class() -> None:
    given = batches()
    metric = RegionalMetric(lambda: DepthMetric(DEPTH), CLASSES)
    found = seen(metric, given).compute()
    whole = DepthMetric(DEPTH)
    by_hand: dict[int, list[float]] = {0: [], 1: []}
    for batch, prediction in given:
        whole.update(prediction, batch.targets["depth"], batch.valid["depth"])
        for b, y, x in batch.valid["depth"].nonzero().tolist():
            if batch.valid["segmentation"][b, y, x]:
                error = abs(float(prediction[b, 0, y, x] - batch.targets["depth"][b, 0, y, x]))
                by_hand[int(batch.targets["segmentation"][b, y, x])].append(error)
    assert list(found)[:4] == list(whole.compute())
    assert {name: found[name] for name in whole.compute()} == whole.compute()
    for number, name in ((0, "wall"), (1, "floor")):
        mean = sum(by_hand[number]) / len(by_hand[number])
        assert found[f"abs_error/{name}"] == pytest.approx(mean, rel=1e-6)
    assert math.isnan(found["abs_error/sky"])
    assert set(found) == set(metric.higher_is_better)
    assert metric.higher_is_better["delta1/wall"] is True
    assert metric.higher_is_better["abs_error/wall"] is False


def test_merging_is_seeing_all_and_reset_forgets() -> None:
    given = batches()
    whole, one, other = (
        seen(RegionalMetric(lambda: DepthMetric(DEPTH), CLASSES), part)
        for part in (given, given[:1], given[1:])
    )
    one.merge(other)
    assert one.compute() == pytest.approx(whole.compute(), nan_ok=True)
    one.reset()
    assert all(math.isnan(value) for value in one.compute().values())


def test_what_has_no_region() -> None:
    """A class that is ignored; what is not there to be looked at."""
    ignoring = Task(name="segmentation", kind="segmentation", channels=3, ignored=(1,))
    names = RegionalMetric(lambda: DepthMetric(DEPTH), ignoring).higher_is_better
    assert {name.partition("/")[2] for name in names} == {"", "0", "2"}
    with pytest.raises(ValueError, match="has no classes"):
        RegionalMetric(lambda: DepthMetric(DEPTH), DEPTH)
    ((batch, prediction),) = batches(1)
    metric = RegionalMetric(lambda: DepthMetric(DEPTH), CLASSES)
    with pytest.raises(ValueError, match="no labels of segmentation were seen"):
        metric.update(prediction, batch.targets["depth"], batch.valid["depth"])


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ("'depth'", r"metrics\.depth\.regions: 'depth' is no task .* that has classes"),
        ("'segmentations'", "did you mean 'segmentation'"),
        ("3", "3 is no task"),
    ],
)
def test_what_is_no_task_of_classes_is_told(regions: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(Plugins(allow=()), (), [set_layer([f"metrics.depth.regions={regions}"])])


def test_a_run_its_page_and_a_comparison_show_them(tmp_path: Path, mtl: Any) -> None:
    """Also of a network that learns depth alone; they count in no mean over metrics."""
    values = {"both": TINY, "alone": {**TINY, "tasks": ["depth"]}}
    runs = [str(tmp_path / name) for name in values]
    for name, given in values.items():
        summary = mtlcore.run({**given, "method": name}, out=str(tmp_path / name))
        final = summary["final"]["val"]["depth"]
        assert any(is_regional(metric) and value > 0 for metric, value in final.items())
        assert set(summary["final"]["val"]) == set(given["tasks"])
        counts = [metric for metric in final if not is_regional(metric)]
        assert counts == ["abs_error", "rel_error", "rmse", "delta1", "loss"]
    comparison = compare(runs, baseline="both")
    assert list(comparison.higher_is_better["depth"]) == counts[:-1]
    tables = {table.title: table for table in tables_of(comparison)}
    table = tables["depth (m): abs_error by region"]
    assert table.head[0] == "variant"
    assert "abs_error/wall ↓" in table.head
    assert [row[0].text for row in table.rows] == ["both", "alone"]
    mtl("report", runs[0])
    page = next((tmp_path / "both").rglob("*.html")).read_text()
    assert "depth (m) by region" in page
    # A trained run is judged by region afterwards, too.
    result = mtl("eval", runs[1], "--set", "metrics.depth.regions=segmentation", "--json")
    assert '"abs_error/wall"' in result.output
