"""What holds for every searcher of a study's trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtlcore.searchers import Choices, FloatRange, IntRange, Searcher, Space, Trial

_SPACE: Space = {
    "optimizer.lr": FloatRange(low=1e-5, high=1.0, log=True),
    "model.dropout": FloatRange(low=0.0, high=0.5),
    "data.size": IntRange(low=32, high=100, step=32),
    "model.depth": IntRange(low=1, high=64, log=True),
    "balancer": Choices(values=({"name": "equal"}, {"name": "dwa", "temperature": 2.0})),
    "training.flip": Choices(values=(True, False, 1)),
}


class SearcherContract:
    """Subclass it, write `make`, and pytest checks the searcher.

    Attributes:
        objectives: The numbers of objectives that it takes.
    """

    objectives: Sequence[int] = (1, 2)

    def make(self, space: Space, objectives: int, seed: int) -> Searcher:
        """Return the searcher."""
        raise NotImplementedError

    def test_values_lie_in_their_ranges(self) -> None:
        """Otherwise a study stops at a configuration that nobody asked for."""
        for objectives in self.objectives:
            for trial in self._happened(objectives, 15):
                for path, value in trial.parameters.items():
                    assert value in _SPACE[path], f"{path} = {value!r} is not in {_SPACE[path]}"

    def test_trials_differ(self) -> None:
        """Otherwise a study trains the same network again and again."""
        for objectives in self.objectives:
            chosen = [repr(sorted(t.parameters.items())) for t in self._happened(objectives, 8)]
            assert len(set(chosen)) == 8, f"the same values again: {chosen}"

    def test_another_start_goes_on_alike(self) -> None:
        """Otherwise a study that was stopped ends elsewhere than one that was not."""
        for objectives in self.objectives:
            trials = self._happened(objectives, 12)
            for number, trial in enumerate(trials):
                fresh = self.make(_SPACE, objectives, 3)
                again = fresh.ask(number, trials[:number])
                assert dict(again) == dict(trial.parameters), (
                    f"trial {number} depends on more than the trials before it: {again}"
                )

    def test_the_seed_decides(self) -> None:
        """Otherwise two searches with different seeds are one."""
        first, other = (self.make(_SPACE, 1, seed).ask(0, ()) for seed in (3, 4))
        assert dict(first) != dict(other), "two seeds give the same first trial"

    def test_every_fate_of_a_trial_is_taken(self) -> None:
        """Otherwise one failed cell, or two at a time, end the whole search."""
        for objectives in self.objectives:
            fates: tuple[Any, ...] = ("finished", "failed", "pruned", "running")
            done: list[Trial] = []
            for number in range(12):
                parameters = self.make(_SPACE, objectives, 0).ask(number, tuple(done))
                status = fates[number % 4]
                values = _costs(parameters, objectives) if status == "finished" else ()
                done.append(
                    Trial(number=number, parameters=parameters, status=status, values=values)
                )

    def test_a_trial_that_is_best_goes_on(self) -> None:
        """Otherwise the best trial of a study is stopped."""
        if 1 not in self.objectives:
            return
        others = [self._with_curve(number, 1.0 + number) for number in range(12)]
        best = self._with_curve(12, 0.1, "running")
        searcher = self.make(_SPACE, 1, 0)
        assert not searcher.prunes(best, others), "the best trial is pruned"

    def _happened(self, objectives: int, count: int) -> list[Trial]:
        searcher = self.make(_SPACE, objectives, 3)
        trials: list[Trial] = []
        for number in range(count):
            parameters = searcher.ask(number, tuple(trials))
            assert set(parameters) == set(_SPACE), f"another set of settings: {parameters}"
            trials.append(
                Trial(
                    number=number,
                    parameters=parameters,
                    status="finished",
                    values=_costs(parameters, objectives),
                )
            )
        return trials

    def _with_curve(self, number: int, level: float, status: Any = "finished") -> Trial:
        parameters = {path: one.at((number % 13) / 13) for path, one in _SPACE.items()}
        curve = {epoch: level + 1 / epoch for epoch in range(1, 9)}
        values = (curve[8],) if status == "finished" else ()
        return Trial(
            number=number, parameters=parameters, status=status, values=values, intermediate=curve
        )


def _costs(parameters: Mapping[str, Any], objectives: int) -> tuple[float, ...]:
    distance = abs(math.log10(parameters["optimizer.lr"]) + 2)
    return (distance, parameters["model.dropout"])[:objectives]
