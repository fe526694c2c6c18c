"""Dynamic task prioritization as a balancer of losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mtlcore.balancing import BalancerContext, LossBalancer
from mtlcore.data import Batch
from mtlcore.errors import MtlError, UsageError
from mtlcore.metrics import MetricValues
from mtlcore.ranges import NonNegative, Share
from mtlcore.tasks import Task, refuse_unknown_tasks

# Of the core's metrics, one from 0 to 1 (or in percent) that is 1 where all is right.
_KPIS = {
    "segmentation": "miou",
    "depth": "delta1",
    "inverse-depth": "delta1",
    "normals": "within_11_25",
    "edges": "f1",
    "saliency": "f1",
    "classification": "accuracy",
    "multilabel": "f1",
    "regression": "r2",
}
_PERCENT = ("within_11_25", "within_22_5", "within_30")
# An indicator of 0 would have an infinite weight; of 0.001, it is 6.9.
_LEAST = 1e-3


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
        self._discount, self._gamma, self._given = discount, gamma, dict(kpis or {})
        self._kpis: dict[str, str] = {}
        self._means: dict[str, float] = {}

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Find out which metric is each task's indicator.

        Raises:
            UsageError: one is named for a task that the run does not have, or none is known.
        """
        refuse_unknown_tasks("balancer.kpis", self._given, tasks)
        for task in tasks:
            kpi = self._given.get(task.name, _KPIS.get(task.kind))
            if kpi is None:
                raise UsageError(
                    f"balancer.kpis: name a metric from 0 to 1 of the task {task.name!r}; for the "
                    f"kind {task.kind!r} none is known"
                )
            self._kpis[task.name] = kpi

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """Weigh the losses."""
        return {task: loss * self._weight(task) for task, loss in losses.items()}

    def after_evaluation(self, metrics: MetricValues) -> None:
        """Take the indicators into the running means.

        Raises:
            UsageError: a task has no such metric.
            MtlError: an indicator is above 1.
        """
        for task, name in self._kpis.items():
            if task in metrics:
                self._take(task, self._indicator(task, name, metrics[task]))

    def current_weights(self) -> dict[str, float]:
        return {task: self._weight(task) for task in self._kpis}

    def reset(self) -> None:
        self._means = {}

    def get_extra_state(self) -> dict[str, Any]:
        return {"means": self._means}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._means = dict(state["means"])

    def _indicator(self, task: str, name: str, values: Mapping[str, float]) -> float:
        if name not in values:
            raise UsageError(
                f"balancer.kpis: the task {task!r} has no metric {name!r}; it has "
                f"{', '.join(values)}"
            )
        value = values[name] / 100 if name in _PERCENT else values[name]
        if value > 1:
            raise MtlError(
                f"balancer dtp: the metric {name} of {task} is {value:g}, and an indicator is from "
                "0 to 1, larger where the task is learnt better; choose another by balancer.kpis"
            )
        return value

    def _take(self, task: str, value: float) -> None:
        if math.isnan(value):
            return  # no label was valid
        value = max(value, _LEAST)
        before = self._means.get(task, value)
        self._means[task] = self._discount * value + (1 - self._discount) * before

    def _weight(self, task: str) -> float:
        if task not in self._means:
            return 1.0
        k = self._means[task]
        # Of k = 1, with gamma 0, the negative of the logarithm is -0.
        return abs(math.pow(1 - k, self._gamma) * math.log(k))
