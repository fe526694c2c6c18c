"""Dynamic stop-and-go: tasks that have converged rest, and go on when they degrade."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch

from mtlcore.episodes import Episode, EpisodeSampler, StepPlan, batch_bounds, shuffled_batches
from mtlcore.metrics import MetricValues
from mtlcore.ranges import Count, NonNegative


@final
class StopAndGo(EpisodeSampler):
    """Dynamic stop-and-go (Lu et al., CVPR 2020), by the validation loss.

    A task that goes on is in every step. It stops when, over `patience` evaluations, its loss has
    fallen by less than `stop` of what it was; it is then in one step of `gap`, each task at its
    own. It goes on again when its loss is above the best one by more than `go` of that. Each step
    trains all tasks of its batch that are not resting; where all rest, the one whose step is next.

    Args:
        tasks: names of the run's tasks.
        splits: number of samples per split.
        stop: smallest improvement, as a part of the earlier loss, with which a task goes on.
        go: largest loss, as a part above the best, with which a task rests.
        patience: evaluations over which the improvement is measured.
        gap: steps from one of a resting task to its next.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        splits: Mapping[str, int],
        *,
        stop: NonNegative = 0.001,
        go: NonNegative = 0.005,
        patience: Count = 2,
        gap: Count = 4,
    ) -> None:
        self._size = splits["train"]
        self._stop, self._go, self._patience, self._gap = stop, go, patience, gap
        self._best: dict[str, float] = {}
        # Losses since a task last began to go on; None: it rests.
        self._since: dict[str, list[float] | None] = {}

    def steps(self, batch_size: int) -> int:
        """Return the number of batches."""
        return len(batch_bounds(self._size, batch_size))

    def resting(self, tasks: Sequence[str]) -> list[str]:
        """Return those of the tasks that rest."""
        return [task for task in tasks if task in self._since and self._since[task] is None]

    def epoch(
        self, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> Iterator[StepPlan]:
        """Yield a batch per step, for the tasks that go on and those whose step it is."""
        resting = self.resting(tasks)
        batches = shuffled_batches("train", self._size, batch_size, generator)
        for number, batch in enumerate(batches):
            waits = {task: (place - number) % self._gap for place, task in enumerate(resting)}
            chosen = [task for task in tasks if waits.get(task, 0) == 0]
            if not chosen:
                chosen = [min(waits, key=lambda task: waits[task])]
            yield StepPlan((batch,), (Episode(tuple(chosen), support=0),))

    def after_evaluation(self, metrics: MetricValues) -> None:
        """Stop tasks and let them go on; one whose loss is not known stays as it is."""
        for task, values in metrics.items():
            loss = values.get("loss", math.nan)
            if not math.isnan(loss):
                self._judge(task, loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the best losses, and those since each task goes on."""
        return {"best": self._best, "since": self._since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._best = dict(state["best"])
        self._since = {
            task: None if losses is None else list(losses)
            for task, losses in state["since"].items()
        }

    def _judge(self, task: str, loss: float) -> None:
        best = min(self._best.get(task, loss), loss)
        self._best[task] = best
        losses = self._since.get(task, [])
        if losses is None:
            if loss > best + self._go * abs(best):
                self._since[task] = [loss]
            return
        losses = [*losses, loss][-self._patience - 1 :]
        earlier = losses[0]
        converged = len(losses) > self._patience and earlier - loss < self._stop * abs(earlier)
        self._since[task] = None if converged else losses
