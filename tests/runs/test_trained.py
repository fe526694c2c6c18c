"""Evaluating trained runs, predicting from photographs of any size, and the doctor."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

import mtlcore
from mtlcore.plugins import Plugins

Command = Callable[..., Result]

CONFIG = {
    "tasks": ["segmentation", "depth"],
    "data": {"train": 6, "val": 5, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"epochs": 2, "batch_size": 3, "evaluate_every": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    mtlcore.run(CONFIG, out=str(out))
    return out


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def evaluated(mtl: Command) -> Callable[..., dict]:
    def figures(run: Path, *arguments: str) -> dict:
        result = mtl("eval", str(run), "--json", *arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return figures


def test_evaluating_repeats_the_runs_own_figures(evaluated: Callable[..., dict], run: Path) -> None:
    for which, figures in (
        ("best", summary(run)["best"]["val"]),
        ("last", summary(run)["final"]["val"]),
    ):
        found = evaluated(run, "--checkpoint", which)
        assert found["samples"] == 5
        for task, values in figures.items():
            assert found["metrics"][task] == pytest.approx(values, rel=1e-6)


def test_other_splits_and_other_data(evaluated: Callable[..., dict], run: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    own = evaluated(run)["metrics"]
    assert evaluated(run, "--split", "test")["metrics"] != own
    assert evaluated(run, "--split", "train")["samples"] == 6
    other = evaluated(run, "--set", "data.seed=5", "--set", "data.val=4")
    assert other["samples"] == 4
    assert other["metrics"] != own
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "{run}", "--set", "optimizer.lr=1"], "changes of [data] and [metrics] only"),
        (["eval", "{run}", "--split", "holiday"], "no split 'holiday'"),
        (["eval", "{run}/report"], "no run there"),
        (["predict", "{run}", "gone.png", "--out", "x"], "gone.png: cannot be read"),
        (["predict", "{run}", "zip://gone.png::a.zip", "--out", "x"], "a.zip: cannot be read"),
        (["predict", "{run}", ".", "--out", "x"], ".: is a folder; name the photographs in it"),
        (["predict", "{run}", "gone.png", "--out", "x", "--size", "big"], "HEIGHTxWIDTH"),
    ],
)
def test_mistakes(
    mtl: Command,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("other.png", b"")
    result = mtl(*(argument.format(run=run) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr


@pytest.mark.parametrize("size", [(40, 56), (33, 17)])
def test_photographs_of_any_size(
    mtl: Command, run: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    photograph = tmp_path / "photograph.png"
    Image.fromarray(pixels).save(photograph)
    out = tmp_path / "out"
    result = mtl("predict", str(run), str(photograph), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == [
        "photograph.depth.npy",
        "photograph.depth.png",
        "photograph.segmentation.npy",
        "photograph.segmentation.png",
    ]
    assert np.load(out / "photograph.depth.npy").shape == (1, *size)
    assert np.load(out / "photograph.segmentation.npy").shape[1:] == size
    with Image.open(out / "photograph.segmentation.png") as picture:
        assert picture.size == size[::-1]


def test_the_network_runs_at_the_size_asked_for(mtl: Command, run: Path, tmp_path: Path) -> None:
    photograph = tmp_path / "photograph.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(photograph)
    arrays = []
    for size in ("32x32", "64x64"):
        out = tmp_path / size
        result = mtl("predict", str(run), str(photograph), "--out", str(out), "--size", size)
        assert result.exit_code == 0, result.output
        arrays.append(np.load(out / "photograph.depth.npy"))
    assert arrays[0].shape == arrays[1].shape
    assert not np.allclose(*arrays)


def test_the_doctor_sees_a_broken_plugin(mtl: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    plugins = Plugins(allow=(), files=[str(tmp_path / "broken.py")])
    result = mtl("doctor", "--json", plugins=plugins)
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["libraries"]["torch"]
    assert any("nothing_of_that_name" in problem for problem in facts["problems"])
    assert "cpu" in facts["devices"]


METRIC = """
from mtlcore import MetricSpec, hookimpl
from mtlcore.metrics import Metric

class Largest(Metric):
    higher_is_better = {"largest": False}
    def __init__(self, task): self.reset()
    def update(self, prediction, target, valid):
        self.value = max(self.value, float((prediction - target).abs().squeeze(1)[valid].max()))
    def merge(self, other): self.value = max(self.value, other.value)
    def compute(self): return {"largest": self.value}
    def reset(self): self.value = 0.0

@hookimpl
def mtl_metrics():
    yield MetricSpec(name="largest", target=Largest, task_kinds=("depth",))
"""


def test_a_trained_run_is_judged_by_further_metrics(
    evaluated: Callable[..., dict], run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "largest.py"
    file.write_text(METRIC)
    usual = evaluated(run)["metrics"]
    both = evaluated(
        run, "--plugin", str(file), "--set", 'metrics.depth=[{name="depth"}, {name="largest"}]'
    )["metrics"]
    assert list(both["depth"]) == [*list(usual["depth"])[:-1], "largest", "loss"]
    largest = both["depth"].pop("largest")
    assert both == usual
    assert largest > usual["depth"]["abs_error"]


def test_metrics_with_the_same_figure_are_refused(mtl: Command, run: Path, tmp_path: Path) -> None:
    twice = 'metrics.depth=[{name="depth"}, {name="depth"}]'
    message = "metrics.depth: several of its metrics compute abs_error"
    judged = mtl("eval", str(run), "--set", twice)
    assert judged.exit_code == 2
    assert message in judged.stderr
    begun = mtl("run", "--set", twice, "--set", "data.train=8", "--out", str(tmp_path / "run"))
    assert begun.exit_code == 2
    assert message in begun.stderr
