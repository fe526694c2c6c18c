"""Early stopping of tasks and of runs: the rule, what it does to a run, and after a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import mtlcore
from mtlcore.display import Display
from mtlcore.engine.stopping import Stop, Stopping
from mtlcore.errors import ConfigError, MtlError
from mtlcore.metrics import beats, mean_ranks
from mtlcore.storage import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("no_pictures")


def feed(
    losses: dict[str, list[float]],
    values: dict[str, list[float]] | None = None,
    *,
    every: int = 1,
    **patience: int | None,
) -> tuple[Stopping, dict[int, list[Stop]]]:
    """The state after a run with these validation losses, and what stopped after which epoch.

    The run is judged by other values of the tasks, or by the losses.
    """
    rules = {"task_patience": None, "patience": None, **patience}
    stopping, stops = Stopping(), {}
    for number in range(len(next(iter(losses.values())))):
        epoch = every * (number + 1)
        now = {task: values[number] for task, values in losses.items()}
        judged = {task: rows[number] for task, rows in (values or losses).items()}
        found = stopping.update(epoch, now, judged, **rules)
        if found:
            stops[epoch] = found
        if stopping.ended is not None:
            break
    return stopping, stops


# The rule


def test_a_task_stops_when_its_patience_is_over() -> None:
    losses = {"a": [3, 2, 2, 2.5, 1, 1], "b": [9, 8, 7, 6, 5, 4]}
    stopping, stops = feed(losses, task_patience=2)
    assert stops == {4: [Stop("a", 2)]}
    assert stopping.stopped == {"a": 4}
    assert stopping.ended is None


def test_without_patience_nothing_stops() -> None:
    _, stops = feed({"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 5]})
    assert stops == {}


def test_the_run_ends_with_its_last_task() -> None:
    stopping, stops = feed({"a": [1, 2, 3, 4, 5], "b": [1, 0.5, 2, 3, 4]}, task_patience=2)
    assert stops == {3: [Stop("a", 1)], 4: [Stop("b", 2), Stop(None, None)]}
    assert stopping.ended == 4


def test_patience_counts_epochs_not_evaluations() -> None:
    _, stops = feed({"a": [3, 2, 2, 2], "b": [9, 8, 7, 6]}, every=5, task_patience=8)
    assert stops == {20: [Stop("a", 10)]}


@pytest.mark.parametrize("unit", [1.0, 1e6, -1.0])
def test_the_run_is_judged_by_ranks(unit: float) -> None:
    # What a gains after the second epoch, b loses.
    a, b = [3, 2, 1, 1.5, 9], [9, 8, 8.5, 9, 9]
    # The scale of a task says nothing, nor does its sign.
    values = {"a": [x - 1.75 for x in a], "b": [abs(unit) * x - 5 for x in b]}
    if unit < 0:
        values = {task: [math.atan(x) for x in rows] for task, rows in values.items()}
    _, stops = feed({"a": a, "b": b}, values, patience=3)
    assert stops == {5: [Stop(None, 2)]}


def test_the_run_is_not_judged_by_losses() -> None:
    losses = {"a": [3.0, 2.0, 1.0], "b": [3.0, 2.0, 1.0]}
    _, stops = feed(losses, {"a": [1, 2, 3], "b": [1, 2, 3]}, patience=2)
    assert stops == {3: [Stop(None, 1)]}


def test_an_equal_evaluation_is_no_improvement() -> None:
    _, stops = feed({"a": [1, 1, 1], "b": [10, 10, 10]}, patience=2)
    assert stops == {3: [Stop(None, 1)]}


def test_nothing_known_is_worse_than_anything() -> None:
    nothing = [math.nan] * 3
    losses = {"a": [1.0, 2.0, 3.0], "b": nothing}
    _, stops = feed(losses, {"a": [math.nan, 5, 4], "b": nothing}, patience=2)
    assert stops == {}
    stopping, stops = feed(losses, {"a": nothing, "b": nothing}, patience=1)
    assert (stops, stopping.best_evaluation) == ({}, None)


def test_the_best_of_several_evaluations_has_the_lowest_mean_rank() -> None:
    a, b = [3.0, 1.0, 2.0, 2.0], [-5.0, math.nan, -math.inf, -5.0]
    evaluations = [dict(zip("ab", values, strict=True)) for values in zip(a, b, strict=True)]
    assert mean_ranks(evaluations) == [(4 + 2.5) / 2, (1 + 4) / 2, (2.5 + 1) / 2, 2.5]
    assert beats(evaluations[:3], 0) and beats(evaluations[:3], 1) and not beats(evaluations, 2)
    assert mean_ranks([]) == []


def test_a_stopped_task_is_held_at_what_it_was() -> None:
    # After a has stopped, the others' learning makes it worse; the run goes on all the same.
    losses = {"a": [1, 2, 2, 50, 99, 99], "b": [9, 8, 7, 6, 5, 4]}
    stopping, stops = feed(losses, task_patience=2, patience=2)
    assert stops == {3: [Stop("a", 1)]}
    assert stopping.held == {"a": 2}
    assert stopping.evaluations[-1] == (6, {"a": 2, "b": 4})
    assert stopping.ended is None


def test_what_is_not_finite_is_no_improvement() -> None:
    losses = {"a": [2, math.nan, math.inf, math.nan], "b": [math.nan] * 4}
    stopping, stops = feed(losses, task_patience=3, patience=9)
    assert stops == {4: [Stop("a", 1)]}
    assert stopping.held == {"a": math.inf}  # and b, which nothing is known of, is left alone
    stopping, _ = feed({"a": [2, 4, math.nan]}, task_patience=2)
    assert stopping.held == {"a": 4}
    # What is held is the value when it stopped, which may be worse than its best one.
    stopping, _ = feed({"a": [2, 4, 5], "b": [9, 8, 7]}, task_patience=2)
    assert stopping.held == {"a": 5}


def test_the_state_is_what_a_checkpoint_can_hold(tmp_path: Path) -> None:
    stopping, _ = feed({"a": [3, 2, 2, 2], "b": [9, 8, 7, 6]}, task_patience=2, patience=2)
    save_checkpoint(tmp_path / "x", attrs.asdict(stopping, recurse=False))
    assert Stopping(**load_checkpoint(tmp_path / "x")) == stopping


# Runs

CONFIG: dict[str, Any] = {
    "tasks": ["segmentation", "depth", "edges"],
    "data": {"train": 8, "val": 4, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    # Restless enough that validation losses go up as well as down.
    "optimizer": {"name": "adamw", "lr": 0.02},
    "training": {"epochs": 14, "batch_size": 4, "threads": 1, "task_patience": 2},
}


def run(out: Path, **training: Any) -> dict[str, Any]:
    config = {**CONFIG, "training": {**CONFIG["training"], **training}}
    return mtlcore.run(config, out=str(out))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def expected(run: Path, patience: int) -> dict[str, int]:
    """When each task has to stop, by its validation losses alone."""
    stopped = {}
    for task in CONFIG["tasks"]:
        best, since = math.inf, 0
        for line in lines(run):
            if (line["split"], line["task"], line["metric"]) == ("val", task, "loss"):
                best, since = (line["value"], 0) if line["value"] < best else (best, since + 1)
                if since == patience:
                    stopped[task] = line["epoch"]
                    break
    return stopped


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopping") / "run"
    run(out)
    return out


def test_a_run_tells_what_stopped_when(stopped: Path) -> None:
    summary = json.loads((stopped / "summary.json").read_text())
    wanted = expected(stopped, 2)
    assert wanted, "no task stopped: the test shows nothing"
    assert min(wanted.values()) < summary["epochs"]
    assert summary["stopped"]["tasks"] == wanted
    told = {x["task"]: x["epoch"] for x in lines(stopped) if x["metric"] == "stopped" and x["task"]}
    assert told == wanted


def test_a_stopped_task_is_in_no_step_and_still_evaluated(stopped: Path) -> None:
    rows = lines(stopped)
    last = max(x["epoch"] for x in rows)
    for task, epoch in expected(stopped, 2).items():
        steps = [x for x in rows if x["split"] == "train" and x["metric"] == "loss"]
        assert max(x["epoch"] for x in steps if x["task"] == task) == epoch
        figures = [x["epoch"] for x in rows if x["split"] == "val" and x["task"] == task]
        assert max(figures) == last


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoints" / "last.safetensors")["learner"]


def test_a_stopped_head_stays_bit_for_bit(stopped: Path, tmp_path: Path) -> None:
    task, epoch = min(expected(stopped, 2).items(), key=lambda item: item[1])
    run(tmp_path / "until", epochs=epoch, task_patience=None, evaluate_every=1)
    then, now = weights(tmp_path / "until"), weights(stopped)
    own = [name for name in then if f".task_{task}." in name]
    assert own
    assert all(torch.equal(then[name], now[name]) for name in own)
    trunk = [name for name in then if name.startswith("model.backbone.") and "weight" in name]
    assert not all(torch.equal(then[name], now[name]) for name in trunk)


def test_a_run_ends_when_all_its_tasks_have_stopped(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", epochs=40, task_patience=1)
    tasks = summary["stopped"]["tasks"]
    assert set(tasks) == set(CONFIG["tasks"])
    assert summary["epochs"] == summary["stopped"]["run"] == max(tasks.values()) < 40
    ends = [x for x in lines(tmp_path / "run") if x["metric"] == "stopped" and x["task"] is None]
    assert [x["epoch"] for x in ends] == [summary["epochs"]]


def test_a_run_ends_with_its_own_patience(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", epochs=40, task_patience=None, patience=2)
    assert summary["stopped"]["tasks"] == {}
    assert summary["epochs"] == summary["stopped"]["run"] == summary["best"]["epoch"] + 2 < 40


class Breaks(Display):
    """Ctrl-C after an epoch, before it is saved."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def epoch(
        self, epoch: int, epochs: int, losses: Mapping[str, float], figures: Any = None
    ) -> None:
        if epoch == self._after:
            raise KeyboardInterrupt

    def stop(self) -> None: ...

    def _begin(self, title: str) -> None: ...


@pytest.mark.parametrize("later", [0, 1, 2])
def test_resumed_it_is_bit_for_bit_the_same(stopped: Path, tmp_path: Path, later: int) -> None:
    out = tmp_path / "run"
    # Before the first task stops, in the epoch that decides, and after it.
    broken = min(expected(stopped, 2).values()) - 1 + later
    with pytest.raises(MtlError, match="go on from the last checkpoint"):
        mtlcore.run(CONFIG, out=str(out), display=Breaks(broken))
    mtlcore.run(CONFIG, out=str(out), resume=True)
    ours, theirs = (
        [{key: x[key] for key in x if key != "seconds"} for x in lines(path)]
        for path in (out, stopped)
    )
    assert ours == theirs
    one, other = (load_checkpoint(x / "checkpoints/last.safetensors") for x in (out, stopped))
    assert one["progress"]["stopping"] == other["progress"]["stopping"]
    assert all(
        torch.equal(value, other["learner"][name])
        for name, value in one["learner"].items()
        if isinstance(value, torch.Tensor)
    )


PHASES = """
from mtlcore import BackboneSpec, hookimpl

@hookimpl
def mtl_backbones():
    from mtlcore.models import Transition
    from mtlcore.standard.segnet import SegNet

    class TwoPhases(SegNet):
        second = False

        def at_progress(self, fraction):
            if self.second or fraction < 0.5:
                return None
            self.second = True
            return Transition()

        def get_extra_state(self):
            return {"second": self.second}

        def set_extra_state(self, state):
            self.second = state["second"]

    yield BackboneSpec(name="two-phases", target=TwoPhases)
"""


def test_after_a_phase_all_tasks_learn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_depth(self: Stopping, epoch: int, *_: Any, **__: Any) -> list[Stop]:
        if epoch == 1:
            self.stopped["depth"] = epoch
        return []

    monkeypatch.setattr(Stopping, "update", stop_depth)
    (tmp_path / "own.py").write_text(PHASES)
    config = {
        **CONFIG,
        "plugins": [str(tmp_path / "own.py")],
        "model": {"backbone": {"name": "two-phases", "width": 0.03125}},
        "training": {**CONFIG["training"], "epochs": 4},
    }
    out = tmp_path / "run"
    with pytest.raises(MtlError):
        mtlcore.run(config, out=str(out), display=Breaks(3))
    mtlcore.run(config, out=str(out), resume=True)
    losses = [x for x in lines(out) if (x["split"], x["metric"]) == ("train", "loss")]
    # The phase begins with epoch 3, whose steps were planned without the task.
    assert {x["epoch"] for x in losses if x["task"] == "depth"} == {1, 4}


def test_it_is_said_on_the_display(tmp_path: Path) -> None:
    display = Breaks(-1)
    training = {**CONFIG["training"], "epochs": 40, "task_patience": 1}
    mtlcore.run({**CONFIG, "training": training}, out=str(tmp_path / "run"), display=display)
    said = [note for note in display.notes if "no more" in note or "run ends" in note]
    assert len(said) == len(CONFIG["tasks"]) + 1
    assert said[-1].endswith("the run ends (no task is left)")
    assert "learns no more (no better validation since epoch" in said[0]


def test_a_patience_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"patience: expected int >= 1 .*got 0"):
        run(tmp_path / "run", patience=0)
