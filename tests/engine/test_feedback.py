"""What samplers, balancers and optimizers are told of a run, and that it survives a resumption."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import mtlcore
from mtlcore.balancing import BalancerContext
from mtlcore.episodes import LoadedPlan
from mtlcore.errors import Interrupted
from mtlcore.learner import Learner
from mtlcore.metrics import MetricValues
from mtlcore.optimizers import GradientDescent, StepReport
from mtlcore.standard.balancers import Uncertainty
from mtlcore.standard.samplers import Joint
from mtlcore.storage import load_checkpoint
from mtlcore.testing.base import changes

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = Path(__file__).parents[2]
#: Weighs a task by its last validation loss; ends the process, or asks it to, in a step.
BALANCER = """
import os, signal
from mtlcore import BalancerSpec, hookimpl

@hookimpl
def mtl_balancers():
    from mtlcore.balancing import LossBalancer

    class ByMetric(LossBalancer):
        def __init__(self):
            super().__init__()
            self.found = {}

        def transform(self, losses, context):
            step, _, how = os.environ.get("MTL_TEST_STRIKE", "-1").partition(" ")
            if context.step == int(step):
                if how == "error":
                    raise RuntimeError("struck")
                os.kill(os.getpid(), signal.SIGTERM)
            return {task: loss / (1 + self.found.get(task, 0)) for task, loss in losses.items()}

        def after_evaluation(self, metrics):
            self.found = {task: values["loss"] for task, values in metrics.items()}

        def get_extra_state(self):
            return self.found

        def set_extra_state(self, state):
            self.found = dict(state)

    yield BalancerSpec(name="by-metric", target=ByMetric)
"""


def example() -> str:
    """The file `by_loss.py` of the page about episode samplers."""
    text = (ROOT / "docs" / "hooks" / "episode-samplers.md").read_text("utf-8")
    found = re.search(r"<!-- test: file by_loss.py -->\n```python\n(.*?)^```$", text, re.M | re.S)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feedback")
    (folder / "by_loss.py").write_text(example())
    (folder / "by_metric.py").write_text(BALANCER)
    return folder


def run(
    work: Path, out: str, episodes: dict[str, Any], *, resume: bool = False, workers: int = 0
) -> dict[str, Any]:
    """Three epochs of six steps."""
    config = {
        "tasks": ["segmentation", "depth", "normals"],
        "device": "cpu",
        "data": {"train": 12, "val": 3, "size": [32, 32], "workers": workers,
                 "augment": {"flip": True}},
        "model": {"backbone": {"width": 0.03125}},
        "balancer": {"name": "by-metric"},
        "episodes": episodes,
        "training": {"epochs": 3, "batch_size": 2, "threads": 1, "evaluate_every": 1},
    }  # fmt: skip
    plugins = [str(work / "by_loss.py"), str(work / "by_metric.py")]
    return mtlcore.run(config, plugins=plugins, out=str(work / out), resume=resume)


SAMPLERS: dict[str, dict[str, Any]] = {
    "joint": {"name": "joint"},
    "of one step": {"name": "by-loss", "horizon": 1},
    "of four steps": {"name": "by-loss", "horizon": 4},
}


@pytest.fixture(scope="module")
def whole(work: Path) -> dict[str, Path]:
    for name, episodes in SAMPLERS.items():
        run(work, name, episodes)
    return {name: work / name for name in SAMPLERS}


def state(run: Path) -> dict[str, Any]:
    found = load_checkpoint(run / "checkpoints" / "last.safetensors")
    return {part: found[part] for part in ("learner", "optimizer", "plans", "random", "ranks")}


def measured(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


# Steps 6 to 11 are the second epoch, of blocks that begin before steps 6 and 10.
OTHERS = ("9 signal", "11 signal")


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "moment",
    ["7 signal", "8 error", *(pytest.param(at, marks=pytest.mark.slow) for at in OTHERS)],
)
def test_resumed_within_an_epoch_it_ends_as_if_nothing_had_happened(
    work: Path, whole: dict[str, Path], name: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{name}, {moment}"
    with monkeypatch.context() as patch:
        patch.setenv("MTL_TEST_STRIKE", moment)
        with pytest.raises((Interrupted, RuntimeError)):
            run(work, out, SAMPLERS[name])
    run(work, out, SAMPLERS[name], resume=True)
    assert not changes(state(whole[name]), state(work / out))
    assert measured(work / out) == measured(whole[name])


def test_workers_change_nothing(work: Path, whole: dict[str, Path]) -> None:
    run(work, "workers", SAMPLERS["of four steps"], workers=2)
    assert not changes(state(whole["of four steps"]), state(work / "workers"))


def test_what_is_learnt_decides(work: Path, whole: dict[str, Path]) -> None:
    """The sampler knows losses of all tasks; earlier knowledge gives other plans."""
    steps = {name: state(whole[name])["plans"]["sampler"] for name in SAMPLERS}
    assert steps["joint"] == {}
    assert set(steps["of one step"]["losses"]) == {"segmentation", "depth", "normals"}
    assert steps["of one step"]["losses"] != steps["of four steps"]["losses"]


def test_everybody_is_told_all_metrics_of_each_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, MetricValues]] = []
    for target in (Joint, GradientDescent, Uncertainty):
        monkeypatch.setattr(
            target,
            "after_evaluation",
            lambda self, metrics: told.append((type(self).__name__, metrics)),
        )
    config = {
        "tasks": ["segmentation", "depth"],
        "device": "cpu",
        "data": {"train": 2, "val": 2, "size": [32, 32], "workers": 0},
        "model": {"backbone": {"width": 0.03125}},
        "balancer": {"name": "uncertainty"},
        "training": {"epochs": 2, "batch_size": 2, "threads": 1, "evaluate_every": 1},
    }
    mtlcore.run(config, out=str(tmp_path / "run"))
    progress = load_checkpoint(tmp_path / "run/checkpoints/last.safetensors")["progress"]
    assert [name for name, _ in told] == ["GradientDescent", "Uncertainty", "Joint"] * 2
    for number, (_, metrics) in enumerate(told):
        assert metrics == progress["evaluations"][number // 3][1]
        assert {"loss", "miou"} <= set(metrics["segmentation"])


def test_a_skipped_step_teaches_a_sampler_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    expected: list[tuple[int, dict[str, float]]] = []
    step = GradientDescent.step

    def taken(self: GradientDescent, learner: Learner, plan: LoadedPlan) -> StepReport:
        if learner.context.step in (1, 2):
            return StepReport(losses={}, skipped="it is marked")
        report = step(self, learner, plan)
        expected.append((learner.context.step, dict(report.losses)))
        return report

    def heard(self: Joint, context: BalancerContext) -> None:
        assert set(context.present) == set(context.losses)
        told.append((context.step, dict(context.losses)))

    monkeypatch.setattr(GradientDescent, "step", taken)
    monkeypatch.setattr(Joint, "after_step", heard)
    config = {
        "tasks": ["segmentation", "depth"],
        "device": "cpu",
        "data": {"train": 8, "val": 2, "size": [32, 32], "workers": 0},
        "model": {"backbone": {"width": 0.03125}},
        "training": {"epochs": 1, "batch_size": 2, "threads": 1},
    }
    mtlcore.run(config, out=str(tmp_path / "run"))
    assert [number for number, _ in told] == [0, 3]
    assert told == expected
