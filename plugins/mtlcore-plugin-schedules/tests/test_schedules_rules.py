"""The rules of the papers, by numbers worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from mtlcore.episodes import EpisodeSampler
from mtlcore.errors import UsageError
from mtlcore_schedules.active import Active
from mtlcore_schedules.stop_and_go import StopAndGo
from mtlcore_schedules.trend import TrendStopping

TASKS = ("a", "b", "c")
SPLITS = {"train": 40, "val": 4}


def _tell(sampler: EpisodeSampler, **losses: float) -> None:
    tensors = {task: torch.tensor(loss) for task, loss in losses.items()}
    sampler.after_step(cast(Any, SimpleNamespace(losses=tensors)))


def _evaluate(sampler: EpisodeSampler, **losses: float) -> None:
    sampler.after_evaluation({task: {"loss": loss} for task, loss in losses.items()})


def _tasks(sampler: EpisodeSampler, asked: Sequence[str] = TASKS) -> list[tuple[str, ...]]:
    plans = sampler.epoch(asked, 4, torch.Generator().manual_seed(0))
    return [plan.episodes[0].tasks for plan in plans]


# -- active sampling ------------------------------------------------------------------------------


def _learnt(sampler: Active, first: dict[str, float], last: dict[str, float]) -> None:
    _tasks(sampler)
    for losses in (first, last):
        for _ in range(2):
            _tell(sampler, **losses)


def test_a_task_is_drawn_by_what_is_left_of_its_way() -> None:
    sampler = Active(TASKS, SPLITS, window=2, temperature=0.5, targets={"b": 1.0})
    _learnt(sampler, {"a": 4.0, "b": 3.0, "c": 2.0}, {"a": 1.0, "b": 1.5, "c": 2.0})
    # Left: a 1/4, b (1.5 - 1) / (3 - 1) = 1/4, c all.
    weights = [math.exp(0.25 / 0.5), math.exp(0.25 / 0.5), math.exp(1 / 0.5)]
    expected = {task: w / sum(weights) for task, w in zip(TASKS, weights, strict=True)}
    assert sampler.probabilities(TASKS) == pytest.approx(expected)


def test_a_task_at_its_target_is_drawn_least() -> None:
    sampler = Active(TASKS, SPLITS, window=2, targets={"a": 1.0})
    _learnt(sampler, {"a": 4.0, "b": 4.0, "c": 4.0}, {"a": 0.5, "b": 2.0, "c": 4.0})
    chances = sampler.probabilities(TASKS)
    assert chances["a"] < chances["b"] < chances["c"]
    assert chances["c"] == pytest.approx(1, abs=1e-4)


def test_scales_of_losses_do_not_matter() -> None:
    found = []
    for scale in (1.0, 1e4):
        sampler = Active(TASKS, SPLITS, window=2)
        _learnt(sampler, {"a": scale, "b": 2.0, "c": 3.0}, {"a": scale / 2, "b": 1.5, "c": 3.0})
        found.append(sampler.probabilities(TASKS))
    assert found[0] == pytest.approx(found[1])


def test_at_first_tasks_take_turns() -> None:
    sampler = Active(TASKS, SPLITS, window=3)
    drawn = [tasks[0] for tasks in _tasks(sampler)]
    assert Counter(drawn[:9]) == {"a": 3, "b": 3, "c": 3}
    assert all(set(drawn[n : n + 3]) == set(TASKS) for n in (0, 3, 6))


def test_steps_follow_the_probabilities() -> None:
    sampler = Active(TASKS, {"train": 4000}, window=2, temperature=0.5)
    _learnt(sampler, {"a": 2.0, "b": 2.0, "c": 2.0}, {"a": 2.0, "b": 1.0, "c": 1.0})
    chances = sampler.probabilities(TASKS)
    drawn = Counter(tasks[0] for tasks in _tasks(sampler))
    for task in TASKS:
        spread = math.sqrt(1000 * chances[task] * (1 - chances[task]))
        assert abs(drawn[task] - 1000 * chances[task]) < 4 * spread


# -- stop-and-go ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "rests"),
    [
        ((1.0, 1.0), False),  # too early to tell
        ((1.0, 0.99, 0.9985), False),  # .15 % over two evaluations
        ((1.0, 0.5, 0.9992), True),  # .08 %
        ((1.0, 1.0, 1.0), True),
        ((-1.0, -1.0, -1.0005), True),  # losses may be negative
        ((-1.0, -1.0, -1.01), False),
        ((1.0, 1.0, 1.0, 1.004), True),  # .4 % above the best
        ((1.0, 1.0, 1.0, 1.006), False),  # .6 %
        ((1.0, 1.0, 1.0, 1.006, 1.0, 1.006), True),  # judged anew from when it went on
        ((1.0, 1.0, 1.0, 1.006, 1.0), False),
        ((1.0, 1.0, 1.0, math.nan), True),  # nothing is known
    ],
)
def test_rules_of_stopping_and_going(losses: tuple[float, ...], rests: bool) -> None:
    sampler = StopAndGo(TASKS, SPLITS)
    for loss in losses:
        _evaluate(sampler, b=loss)
    assert (sampler.resting(TASKS) == ["b"]) is rests


def test_a_resting_task_has_one_step_in_four() -> None:
    sampler = StopAndGo(TASKS, SPLITS)
    for _ in range(3):
        _evaluate(sampler, b=1.0)
    steps = _tasks(sampler)
    assert [("b" in tasks) for tasks in steps[:8]] == [True, False, False, False] * 2
    assert all({"a", "c"} <= set(tasks) for tasks in steps)


def test_where_all_rest_no_step_is_empty_and_each_has_its_steps() -> None:
    sampler = StopAndGo(TASKS, SPLITS)
    for _ in range(3):
        _evaluate(sampler, a=1.0, b=1.0, c=1.0)
    counts = Counter(task for tasks in _tasks(sampler) for task in tasks)
    assert set(counts) == set(TASKS)
    assert all(len(tasks) == 1 for tasks in _tasks(sampler))


# -- TCDCN's criterion ----------------------------------------------------------------------------


def _trained(errors: Sequence[float], validation: float, **settings: Any) -> TrendStopping:
    sampler = TrendStopping(TASKS, SPLITS, window=3, **settings)
    for error in errors:
        _tell(sampler, a=error, b=2 * error)
        _tell(sampler, a=error, b=0.0)
        _evaluate(sampler, a=validation, b=validation)
    return sampler


def test_the_criterion_is_the_papers() -> None:
    sampler = _trained([2.0, 0.9, 0.5, 0.4], 0.6, importance={"b": 2.0})
    # Of the last three: median .5, sum 1.8; the least error is .4.
    expected = 3 * 0.5 / (1.8 - 3 * 0.5) * (0.6 - 0.4) / (2.0 * 0.4)
    assert sampler.criterion("b", 0.6) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("errors", "validation", "stops"),
    [
        ([2.0, 1.0, 0.3], 0.31, False),  # falls fast, generalises
        ([1.0, 0.99, 0.981], 5.0, True),  # flat, and validation is far above training
        ([1.0, 1.0, 1.0], 1.0, False),  # flat, but generalises
        ([1.0, 1.0, 1.0], 1.1, True),
        ([1.0, 0.99], 5.0, False),  # too early to tell
        ([1.0, 0.99, 0.981], math.nan, False),
    ],
)
def test_auxiliary_tasks_stop_and_the_main_one_never(
    errors: list[float], validation: float, stops: bool
) -> None:
    sampler = _trained(errors, validation)
    assert all(("b" in tasks) is not stops for tasks in _tasks(sampler))
    assert all("a" in tasks and "c" in tasks for tasks in _tasks(sampler))


def test_a_stopped_task_alone_goes_on() -> None:
    sampler = _trained([1.0, 0.99, 0.981], 5.0)
    assert set(_tasks(sampler, ("b",))) == {("b",)}


def test_several_main_tasks() -> None:
    sampler = _trained([1.0, 0.99, 0.981], 5.0, main=("b", "c"))
    assert set(_tasks(sampler)) == {("b", "c")}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Active, {"targets": {"bb": 1.0}}, "episodes.targets.*'bb'.*a, b, c"),
        (TrendStopping, {"main": ("d",)}, "episodes.main.*'d'"),
        (TrendStopping, {"main": ()}, "episodes.main"),
        (TrendStopping, {"importance": {"d": 1.0}}, "episodes.importance.*'d'"),
    ],
)
def test_unknown_tasks_are_told(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kind(TASKS, SPLITS, **settings)
