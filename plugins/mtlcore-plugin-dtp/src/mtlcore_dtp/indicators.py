"""Running means of the tasks' indicators, and the focal weights that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

from mtlcore.errors import MtlError, UsageError

#: Of the core's metrics, one from 0 to 1 (or in percent) that is 1 where all is right.
KPIS = {
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


@final
class Indicators:
    """The running means k of indicators, and weights -(1 - k)^gamma log k; 1 until one is known.

    Args:
        owner: what they belong to, for messages: "balancer" or "episodes".
        discount: the part of a new indicator in the mean.
        gamma: of the weights.
    """

    def __init__(self, owner: str, discount: float, gamma: float) -> None:
        self._owner, self._discount, self._gamma = owner, discount, gamma
        self.means: dict[str, float] = {}

    def take(self, task: str, name: str, values: Mapping[str, float]) -> None:
        """Take a task's indicator into its mean.

        Args:
            task: its name.
            name: the metric that is the indicator.
            values: the task's metrics.

        Raises:
            UsageError: the task has no such metric.
            MtlError: the indicator is above 1.
        """
        if name not in values:
            raise UsageError(
                f"{self._owner}.kpis: the task {task!r} has no metric {name!r}; it has "
                f"{', '.join(values)}"
            )
        value = values[name] / 100 if name in _PERCENT else values[name]
        if value > 1:
            raise MtlError(
                f"{self._owner} dtp: the metric {name} of {task} is {value:g}, and an indicator is "
                "from 0 to 1, larger where the task is learnt better; choose another by "
                f"{self._owner}.kpis"
            )
        if math.isnan(value):
            return  # no label was valid
        value = max(value, _LEAST)
        before = self.means.get(task, value)
        self.means[task] = self._discount * value + (1 - self._discount) * before

    def weight(self, task: str) -> float:
        """Return a task's weight."""
        if task not in self.means:
            return 1.0
        k = self.means[task]
        # Of k = 1, with gamma 0, the negative of the logarithm is -0.
        return abs(math.pow(1 - k, self._gamma) * math.log(k))
