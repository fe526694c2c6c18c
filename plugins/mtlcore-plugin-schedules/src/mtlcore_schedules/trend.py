"""Task-wise early stopping, by the trend of the training error and the generalisation error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, final

import torch

from mtlcore.balancing import BalancerContext
from mtlcore.episodes import Episode, EpisodeSampler, StepPlan, batch_bounds, shuffled_batches
from mtlcore.errors import UsageError
from mtlcore.metrics import MetricValues
from mtlcore.ranges import Positive, Range
from mtlcore.tasks import refuse_unknown_tasks


@final
class TrendStopping(EpisodeSampler):
    """Task-wise early stopping (Zhang et al., ECCV 2014, TCDCN).

    After evaluation t an auxiliary task stops for good if

        k med / |sum E - k med|  x  (V(t) - min E) / (importance min E)  >  threshold,

    where E(j) is its mean training loss between evaluations j - 1 and j, V(t) its validation loss,
    `med` and `sum` are over the last k evaluations, and `min` is over all. The first factor is
    small while the training loss falls fast, the second while the task generalises.

    Args:
        tasks: names of the run's tasks.
        splits: number of samples per split.
        main: the tasks that never stop; unset: the first one.
        window: k, evaluations over which the trend is looked at.
        threshold: above which a task stops.
        importance: task -> lambda; 1 where none is named.

    Raises:
        UsageError: there is no such task.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        splits: Mapping[str, int],
        *,
        main: tuple[str, ...] | None = None,
        window: Annotated[int, Range(ge=2)] = 5,
        threshold: Positive = 10.0,
        importance: dict[str, Positive] | None = None,
    ) -> None:
        self._size = splits["train"]
        self._main = tuple(tasks[:1]) if main is None else tuple(main)
        self._window, self._threshold = window, threshold
        self._importance = dict(importance or {})
        refuse_unknown_tasks("episodes.main", self._main, tasks)
        refuse_unknown_tasks("episodes.importance", self._importance, tasks)
        if not self._main:
            raise UsageError("episodes.main: name at least one task that never stops")
        self._sums: dict[str, tuple[float, int]] = {}
        self._errors: dict[str, list[float]] = {}
        self._stopped: list[str] = []

    def steps(self, batch_size: int) -> int:
        """Return the number of batches."""
        return len(batch_bounds(self._size, batch_size))

    def epoch(
        self, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> Iterator[StepPlan]:
        """Yield a batch per step, for the tasks that have not stopped; if none is left, for all."""
        going = tuple(task for task in tasks if task not in self._stopped) or tuple(tasks)
        for batch in shuffled_batches("train", self._size, batch_size, generator):
            yield StepPlan((batch,), (Episode(going, support=0),))

    def after_step(self, context: BalancerContext) -> None:
        """Take the losses of a step into the means since the last evaluation."""
        for task, loss in context.losses.items():
            total, count = self._sums.get(task, (0.0, 0))
            self._sums[task] = total + float(loss), count + 1

    def after_evaluation(self, metrics: MetricValues) -> None:
        """Stop the auxiliary tasks whose criterion is above the threshold."""
        for task, (total, count) in self._sums.items():
            self._errors.setdefault(task, []).append(total / count)
        self._sums = {}
        for task, values in metrics.items():
            if task in self._main or task in self._stopped:
                continue
            if self.criterion(task, values.get("loss", math.nan)) > self._threshold:
                self._stopped.append(task)

    def criterion(self, task: str, validation_loss: float) -> float:
        """Return the left side of the inequality; NaN before `window` evaluations."""
        errors = self._errors.get(task, [])
        if len(errors) < self._window:
            return math.nan
        recent = errors[-self._window :]
        least = min(errors)
        flat = self._window * statistics.median(recent)
        trend = abs(sum(recent) - flat)
        above = validation_loss - least
        scale = self._importance.get(task, 1.0) * least * trend
        if scale > 0:
            return flat * above / scale
        # Nothing is learnt any more: a flat curve, or no error at all.
        return math.inf if above > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what stopped, and the losses that decide."""
        return {
            "sums": {task: list(pair) for task, pair in self._sums.items()},
            "errors": self._errors,
            "stopped": self._stopped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._sums = {task: (total, count) for task, (total, count) in state["sums"].items()}
        self._errors = {task: list(errors) for task, errors in state["errors"].items()}
        self._stopped = list(state["stopped"])
