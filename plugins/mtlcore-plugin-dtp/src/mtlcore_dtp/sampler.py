"""Dynamic task prioritization as an episode sampler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch

from mtlcore.episodes import Episode, EpisodeSampler, StepPlan, batch_bounds, shuffled_batches
from mtlcore.errors import UsageError
from mtlcore.metrics import MetricValues
from mtlcore.ranges import NonNegative, Share
from mtlcore.tasks import refuse_unknown_tasks
from mtlcore_dtp.indicators import KPIS, Indicators


@final
class PrioritySampler(EpisodeSampler):
    """One task per step, drawn in proportion to the weights of dynamic task prioritization.

    The weights are those of the balancer `dtp` (Guo et al., ECCV 2018), so that a task's expected
    gradient is theirs up to one factor for all tasks, at the cost of one task's step. Until an
    evaluation tasks are drawn alike, as they are where every task is perfect.

    Args:
        tasks: names of the run's tasks.
        splits: number of samples per split.
        discount: the part of the new indicator in the running mean.
        gamma: how much faster weights fall than the logarithm where a task becomes easy.
        kpis: task name -> the metric that is its indicator; by default the first of `miou`,
            `delta1`, `within_11_25`, `f1`, `accuracy` and `r2` that the task has.

    Raises:
        UsageError: an indicator is named for a task that does not learn.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        splits: Mapping[str, int],
        *,
        discount: Share = 0.5,
        gamma: NonNegative = 1.0,
        kpis: dict[str, str] | None = None,
    ) -> None:
        self._size = splits["train"]
        self._kpis = dict(kpis or {})
        refuse_unknown_tasks("episodes.kpis", self._kpis, tasks)
        self._indicators = Indicators("episodes", discount, gamma)

    def steps(self, batch_size: int) -> int:
        """Return the number of batches."""
        return len(batch_bounds(self._size, batch_size))

    def epoch(
        self, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> Iterator[StepPlan]:
        """Yield a batch per step, for one task each."""
        weights = [self._indicators.weight(task) for task in tasks]
        chances = torch.tensor(weights if any(weights) else [1.0] * len(tasks)).double()
        for batch in shuffled_batches("train", self._size, batch_size, generator):
            task = tasks[int(chances.multinomial(1, generator=generator))]
            yield StepPlan((batch,), (Episode((task,), support=0),))

    def after_evaluation(self, metrics: MetricValues) -> None:
        """Take the indicators into the running means.

        Raises:
            UsageError: a task has no metric that is an indicator.
            MtlError: an indicator is above 1.
        """
        for task, values in metrics.items():
            self._indicators.take(task, self._kpi(task, values), values)

    def state_dict(self) -> dict[str, Any]:
        """Return the running means."""
        return {"means": self._indicators.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._indicators.means = dict(state["means"])

    def _kpi(self, task: str, values: Mapping[str, float]) -> str:
        if task in self._kpis:
            return self._kpis[task]
        known = next((name for name in KPIS.values() if name in values), None)
        if known is None:
            raise UsageError(
                f"episodes.kpis: name a metric from 0 to 1 of the task {task!r}; it has "
                f"{', '.join(values)}"
            )
        return known
