"""Dynamic task prioritization as a balancer of losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from mtlcore.balancing import BalancerContext, LossBalancer
from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.metrics import MetricValues
from mtlcore.ranges import NonNegative, Share
from mtlcore.tasks import Task, refuse_unknown_tasks
from mtlcore_dtp.indicators import KPIS, Indicators


class DTP(LossBalancer):
    """Dynamic task prioritization (Guo et al., ECCV 2018): difficult tasks weigh most.

    A task's difficulty is told by a key performance indicator (KPI), a metric from 0 to 1 such as
    an accuracy, of which a running mean is kept, `k_i <- a kpi_i + (1 - a) k_i`, the indicator
    itself at first. Loss i weighs as a focal loss does,

        w_i = -(1 - k_i)^gamma log k_i,

    for trunk and heads alike: 0 where the task is perfect, without bound where it knows nothing.

    The indicators are the metrics of each evaluation on the validation split; until the first one
    all weights are 1. An indicator below 0.001, as a negative r2, counts as 0.001; one that no
    label was valid for, and a task that was not evaluated, leaves the mean as it is. Metrics in
    percent (`within_11_25` and the like, of normals) are divided by 100.

    Args:
        discount: a, the part of the new indicator in the running mean.
        gamma: how much faster weights fall than the logarithm where a task becomes easy.
        kpis: task name -> the metric that is its indicator. By default `miou` of segmentation,
            `delta1` of depth, `within_11_25` of normals, `accuracy` of classification, `f1` of
            edges, saliency and several labels, `r2` of regression; other kinds need one.
    """

    def __init__(
        self,
        *,
        discount: Share = 0.5,
        gamma: NonNegative = 1.0,
        kpis: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._given = dict(kpis or {})
        self._kpis: dict[str, str] = {}
        self._indicators = Indicators("balancer", discount, gamma)

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Find out which metric is each task's indicator.

        Raises:
            UsageError: one is named for a task that the run does not have, or none is known.
        """
        refuse_unknown_tasks("balancer.kpis", self._given, tasks)
        for task in tasks:
            kpi = self._given.get(task.name, KPIS.get(task.kind))
            if kpi is None:
                raise UsageError(
                    f"balancer.kpis: name a metric from 0 to 1 of the task {task.name!r}; for the "
                    f"kind {task.kind!r} none is known"
                )
            self._kpis[task.name] = kpi

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """Weigh the losses."""
        return {task: loss * self._indicators.weight(task) for task, loss in losses.items()}

    def after_evaluation(self, metrics: MetricValues) -> None:
        """Take the indicators into the running means.

        Raises:
            UsageError: a task has no such metric.
            MtlError: an indicator is above 1.
        """
        for task, name in self._kpis.items():
            if task in metrics:
                self._indicators.take(task, name, metrics[task])

    def current_weights(self) -> dict[str, float]:
        return {task: self._indicators.weight(task) for task in self._kpis}

    def reset(self) -> None:
        self._indicators.means = {}

    def get_extra_state(self) -> dict[str, Any]:
        return {"means": self._indicators.means}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._indicators.means = dict(state["means"])
