"""Optuna's samplers and pruners behind mtlcore's contract."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from mtlcore.errors import UsageError
from mtlcore.searchers import Choices, FloatRange, IntRange, Searcher, Space, Trial
from mtlcore.standard.searchers import Random
from mtlcore.testing import SearcherContract, assert_plugin_is_light, assert_plugin_is_whole
from mtlcore_optuna.searcher import Optuna

EARLY: Any = {"n_startup_trials": 3}


class TestTPE(SearcherContract):
    def make(self, space: Space, objectives: int, seed: int) -> Optuna:
        pruner: Any = "median" if objectives == 1 else "none"
        return Optuna(space, objectives, seed, sampler_options=EARLY, pruner=pruner)


class TestRandom(SearcherContract):
    def make(self, space: Space, objectives: int, seed: int) -> Optuna:
        pruner: Any = "successive-halving" if objectives == 1 else "none"
        return Optuna(space, objectives, seed, sampler="random", pruner=pruner)


class TestGaussianProcess(SearcherContract):
    objectives = (1,)

    @pytest.fixture(autouse=True)
    def _needs_scipy(self) -> None:
        pytest.importorskip("scipy")

    def make(self, space: Space, objectives: int, seed: int) -> Optuna:
        return Optuna(space, objectives, seed, sampler="gp", pruner="hyperband")


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_optuna.plugin")
    assert_plugin_is_whole("mtlcore_optuna.plugin")


SPACE: Space = {
    "lr": FloatRange(low=1e-5, high=1.0, log=True),
    "width": IntRange(low=1, high=9, step=3),
    "balancer": Choices(values=({"name": "equal"}, {"name": "dwa"})),
}


def searched(searcher: Searcher, count: int) -> list[float]:
    """The costs of the second half of a search for lr = 0.003 with dwa."""
    trials: list[Trial] = []
    for number in range(count):
        chosen = searcher.ask(number, trials)
        cost = abs(math.log10(chosen["lr"]) + 2.5) + (chosen["balancer"]["name"] == "equal")
        trials.append(Trial(number=number, parameters=chosen, status="finished", values=(cost,)))
    return [trial.values[0] for trial in trials[count // 2 :]]


def test_it_learns_from_what_the_trials_reached() -> None:
    """Over several seeds; a single search of 20 trials may go astray."""
    few = {"n_startup_trials": 5}
    by_tpe = [
        x for seed in range(4) for x in searched(Optuna(SPACE, 1, seed, sampler_options=few), 40)
    ]
    at_random = [x for seed in range(4) for x in searched(Random(SPACE, 1, seed), 40)]
    assert statistics.median(by_tpe) < 0.8 * statistics.median(at_random)


def trial(number: int, level: float, epochs: int, status: Any) -> Trial:
    parameters = {path: one.at(number / 10) for path, one in SPACE.items()}
    curve = dict.fromkeys(range(1, epochs + 1), level)
    values = (level,) if status == "finished" else ()
    return Trial(
        number=number, parameters=parameters, status=status, values=values, intermediate=curve
    )


@pytest.mark.parametrize(
    ("pruner", "options"),
    [
        ("median", {"n_startup_trials": 2}),
        ("percentile", {"percentile": 30.0, "n_startup_trials": 2}),
        ("successive-halving", {"min_resource": 1, "reduction_factor": 2}),
        ("hyperband", {"min_resource": 1, "max_resource": 8, "reduction_factor": 2}),
        ("threshold", {"upper": 5.0}),
    ],
)
def test_pruners_stop_what_is_worse_than_all_others(pruner: Any, options: Any) -> None:
    others = [trial(number, number / 10, 8, "finished") for number in range(8)]
    searcher = Optuna(SPACE, 1, 0, pruner=pruner, pruner_options=options)
    # In hyperband's last bracket nothing is stopped at first: some numbers are in another one.
    worst = [trial(number, 9.0, 4, "running") for number in range(8, 20)]
    assert any(searcher.prunes(one, others) for one in worst)
    assert not searcher.prunes(trial(8, 0.0, 4, "running"), others)
    assert not Optuna(SPACE, 1, 0).prunes(worst[0], others), "without a pruner nothing stops"


def test_what_is_wrong_is_told_before_the_first_trial() -> None:
    with pytest.raises(UsageError, match=r"pruner: median needs one objective"):
        Optuna(SPACE, 2, 0, pruner="median")
    with pytest.raises(UsageError, match=r"sampler_options: Optuna's TPESampler .*n_startup"):
        Optuna(SPACE, 1, 0, sampler_options={"n_startup": 3})
    with pytest.raises(UsageError, match=r"pruner_options: Optuna's PercentilePruner"):
        Optuna(SPACE, 1, 0, pruner="percentile", pruner_options={"percentile": 300.0})
