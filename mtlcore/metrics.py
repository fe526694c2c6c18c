"""Metrics: pooled over a whole split, never a mean of batch means."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence

from torch import Tensor


class Metric(abc.ABC):
    """Figures of one task: `Metric(task, **settings)`.

    Attributes:
        higher_is_better: per figure that `compute` returns its direction; the first is the one
            by which the task is judged where a single figure is needed.
    """

    higher_is_better: Mapping[str, bool]

    @abc.abstractmethod
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Take in a batch: raw predictions (B, C, ...), targets and masks as in `Batch`."""

    @abc.abstractmethod
    def compute(self) -> dict[str, float]:
        """The figures over everything seen; NaN where nothing valid was seen."""

    @abc.abstractmethod
    def merge(self, other: Metric) -> None:
        """Take in what another instance (of another process) has seen."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Forget everything."""


def delta_m(
    values: Mapping[str, Mapping[str, float]],
    baseline: Mapping[str, Mapping[str, float]],
    judged_by: Mapping[str, Sequence[tuple[str, bool]]],
) -> float:
    """Mean relative gain over a named baseline in percent; positive is better.

    The mean over tasks of the mean over that task's metrics of `(value - base) / base`, with the
    sign turned where lower is better. With one metric per task this is the definition of Maninis
    et al. 2019 (MTAN, MTPSL, Vandenhende et al. use it).

    Args:
        values: task -> metric -> value.
        baseline: the same of the baseline run, usually the single-task models.
        judged_by: task -> the metrics that count, each with `higher_is_better`.
    """
    gains = []
    for task, metrics in judged_by.items():
        terms = [
            (1 if higher else -1)
            * (values[task][name] - baseline[task][name])
            / (baseline[task][name] or math.nan)
            for name, higher in metrics
        ]
        gains.append(sum(terms) / len(terms))
    return 100 * sum(gains) / len(gains)
