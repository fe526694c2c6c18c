"""The loop: how long it runs, what it tells the optimizer, which steps and epochs count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.config import Layer, resolve
from mtlcore.display import SilentDisplay
from mtlcore.engine import Session, Training, validation
from mtlcore.episodes import LoadedPlan
from mtlcore.errors import MtlError
from mtlcore.learner import Learner
from mtlcore.models import Transition
from mtlcore.optimizers import GradientDescent, StepReport
from mtlcore.plugins import Plugins
from mtlcore.runs import try_step
from mtlcore.standard.segnet import SegNet
from mtlcore.storage import RunDirectory

pytestmark = pytest.mark.usefixtures("no_pictures")

TINY: dict[str, Any] = {
    "tasks": ["segmentation", "depth"],
    "device": "cpu",
    "data": {"train": 6, "val": 2, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"epochs": 2, "batch_size": 3, "threads": 1},
}


def run(out: Path, optimizer: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    config = {**TINY, "training": {**TINY["training"], **training}}
    return mtlcore.run(
        config if optimizer is None else {**config, "optimizer": optimizer}, out=str(out)
    )


def recorded(out: Path, split: str, metric: str) -> list[tuple[int, float]]:
    """Epoch and value of each line."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [
        (line["epoch"], line["value"])
        for line in lines
        if (line["split"], line["metric"]) == (split, metric)
    ]


@pytest.mark.parametrize(
    ("training", "epochs"),
    [
        ({"epochs": 3}, 3),
        ({"steps": 4, "epochs": None}, 2),
        ({"steps": 5, "epochs": None}, 3),
        ({"steps": 5, "epochs": 2}, 2),
        ({"steps": 1, "epochs": 9}, 1),
    ],
)
def test_steps_are_whole_epochs_and_the_first_limit_counts(
    training: dict[str, int | None], epochs: int
) -> None:
    given = {key: value for key, value in training.items() if value is not None}
    values = {**TINY, "training": {"batch_size": 3, "threads": 1, **given}}
    found = try_step(resolve(Plugins(allow=()), (), [Layer("test", values)]))
    assert (found["epochs"], found["steps"]) == (epochs, 2 * epochs)


def test_the_rate_follows_the_steps_of_the_run(tmp_path: Path) -> None:
    run(tmp_path / "run", {"name": "sgd", "lr": 0.01, "schedule": {"name": "poly", "power": 1.0}})
    rates = [rate for _, rate in recorded(tmp_path / "run", "train", "learning_rate")]
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_a_plateau_is_one_of_validation_losses(tmp_path: Path) -> None:
    """Worked out again from what the run has written down."""
    out, schedule = tmp_path / "run", {"name": "plateau", "patience": 0, "gamma": 0.5}
    run(out, {"name": "adamw", "lr": 0.05, "schedule": schedule}, epochs=8, evaluate_every=1)
    losses: dict[int, list[float]] = {}
    for epoch, loss in recorded(out, "val", "loss"):
        losses.setdefault(epoch, []).append(loss)
    rate, expected, best = 0.05, [0.05, 0.05], 0
    for epoch in range(2, 9):
        expected += [rate, rate]
        seen = [dict(enumerate(losses[e])) for e in range(1, epoch + 1)]
        ranks = [
            sum(1 + sum(o[t] < s[t] for o in seen) for t in s) for s in seen
        ]  # no two losses are the same
        best, rate = (epoch - 1, rate) if ranks[-1] < ranks[best] else (best, rate / 2)
    assert expected[-1] < 0.05, "it never fell: the test shows nothing"
    rates = [found for _, found in recorded(out, "train", "learning_rate")]
    assert rates == pytest.approx(expected)


def skipping(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the steps that are marked be skipped."""
    step, marks = GradientDescent.step, iter(pattern)

    def some(self: GradientDescent, learner: Learner, plan: LoadedPlan) -> StepReport:
        if next(marks) == "x":
            return StepReport(losses={}, skipped="it is marked")
        return step(self, learner, plan)

    monkeypatch.setattr(GradientDescent, "step", some)


def test_skipped_steps_end_a_run_where_they_follow_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        skipping("x-x-", patch)
        assert run(tmp_path / "apart", max_skipped=2)["skipped_steps"] == 2
    with monkeypatch.context() as patch:
        skipping("-xx-", patch)
        with pytest.raises(MtlError, match=r"step 3: 2 steps in a row .* because it is marked"):
            run(tmp_path / "together", max_skipped=2)


def test_the_best_epoch_is_chosen_by_ranks_of_first_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a loss that crosses zero, as hu-depth's does, and of metrics of any scale."""
    told = iter(
        {"depth": {"abs_error": error, "loss": loss}, "segmentation": {"miou": iou, "loss": 1.0}}
        for error, loss, iou in (
            (9.0, 0.01, 0.2),
            (7.0, -1.5, 0.1),
            (8.0, 0.001, 0.3),
            (6.0, 5.0, 0.3),
        )
    )
    monkeypatch.setattr(validation, "evaluate", lambda *_: next(told))
    found = run(tmp_path / "run", evaluate_every=1, epochs=4)["best"]
    assert (found["epoch"], found["chosen_by"]) == (4, ["segmentation.miou", "depth.abs_error"])


def test_of_equal_evaluations_the_first_is_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"depth": {"abs_error": 1.0, "loss": 1.0}, "segmentation": {"miou": 0.5, "loss": 1.0}}
    monkeypatch.setattr(validation, "evaluate", lambda *_: figures)
    assert run(tmp_path / "run", evaluate_every=1)["best"]["epoch"] == 1


@pytest.mark.parametrize(("heads", "balancer"), [(True, False), (False, True)])
def test_a_phase_starts_anew_what_it_says_and_nothing_else(
    heads: bool, balancer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments of what the backbone names, heads with theirs, what the balancer has seen."""
    # So small a rate moves no weight.
    optimizer = {"name": "adam", "lr": 1e-30}
    values = {**TINY, "balancer": {"name": "dwa"}, "optimizer": optimizer}
    config = resolve(Plugins(allow=()), (), [Layer("test", values)])
    session = Session(config, RunDirectory(str(tmp_path), resume=True), SilentDisplay())
    training = Training(session)
    training.first_step()
    before = {name: p.detach().clone() for name, p in session.learner.named_parameters()}
    named = "encoder.levels.0.first.0.weight"
    change = Transition(reset=(named,), reset_heads=heads, reset_balancer=balancer)
    monkeypatch.setattr(SegNet, "at_progress", lambda *_: change)
    training.first_step()
    of_heads = {name for name in before if name.startswith("model.heads.")}
    moments = session.optimizer.state_dict()["torch"]["state"]
    steps = {name: float(moments[place]["step"]) for place, name in enumerate(before)}
    anew = {name for name, number in steps.items() if number == 1}
    assert anew == {f"model.backbone.{named}"} | (of_heads if heads else set())
    now = dict(session.learner.named_parameters())
    moved = {name for name, p in before.items() if not torch.allclose(p, now[name], atol=1e-20)}
    assert moved == ({name for name in of_heads if name.endswith("weight")} if heads else set())
    (weighing,) = session.learner.balancing.loss_balancers
    seen = weighing.get_extra_state()["running"]["depth"][1]
    assert seen == (1 if balancer else 2)
