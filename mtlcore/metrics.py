"""Metrics: pooled over a whole split, never a mean of batch means."""

from __future__ import annotations

import abc
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import final

import attrs
from torch import Tensor

#: Task -> metric -> value.
MetricValues = dict[str, dict[str, float]]


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


@final
class MetricCollection(Metric):
    """Metrics of one task as one: all see the same, and their figures follow one another.

    Raises:
        ValueError: two of them have a figure of the same name.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = tuple(metrics)
        names = [name for metric in metrics for name in metric.higher_is_better]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several of its metrics have a figure {', '.join(twice)}")
        self.higher_is_better = {
            name: higher for metric in metrics for name, higher in metric.higher_is_better.items()
        }

    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Every metric takes in the batch."""
        for metric in self._metrics:
            metric.update(prediction, target, valid)

    def compute(self) -> dict[str, float]:
        """The figures of the first, then of the second, and so on."""
        return {name: value for metric in self._metrics for name, value in metric.compute().items()}

    def merge(self, other: Metric) -> None:
        """Merge each with its counterpart."""
        assert isinstance(other, MetricCollection)
        for mine, theirs in zip(self._metrics, other._metrics, strict=True):
            mine.merge(theirs)

    def reset(self) -> None:
        """Every metric forgets."""
        for metric in self._metrics:
            metric.reset()


@final
@attrs.frozen(kw_only=True)
class DeltaM:
    """A published way to make one number of a model's gains over a baseline, in percent.

    Args:
        name: as users write it.
        formula: in words, for the tables.
        papers: that use it.
        first_only: only the first metric of each task counts.
        pooled: the mean is over all metrics; without it, over tasks of the mean over their metrics.
        higher_is_better: its sign convention.
    """

    name: str
    formula: str
    papers: str
    first_only: bool = False
    pooled: bool = False
    higher_is_better: bool = True


#: The definitions of delta_m in use; numbers of different ones cannot be compared.
DELTA_M: Mapping[str, DeltaM] = {
    definition.name: definition
    for definition in (
        DeltaM(
            name="mtan",
            formula="mean over tasks of the relative gain in the task's first metric",
            papers="Maninis et al. 2019, Vandenhende et al. 2021",
            first_only=True,
        ),
        DeltaM(
            name="cagrad",
            formula="mean over all metrics of all tasks of the relative loss",
            papers="Liu et al. 2021, Navon et al. 2022, Liu et al. 2023",
            pooled=True,
            higher_is_better=False,
        ),
        DeltaM(
            name="libmtl",
            formula="mean over tasks of the mean relative gain over the task's metrics",
            papers="Lin and Zhang 2023",
        ),
    )
}


def delta_m(
    values: Mapping[str, Mapping[str, float]],
    baseline: Mapping[str, Mapping[str, float]],
    directions: Mapping[str, Mapping[str, bool]],
    definition: DeltaM,
) -> float:
    """What a model gains over a named baseline, in percent; see the definition for the sign.

    A metric's relative gain is `(value - base) / base`, turned round where lower is better; it is
    NaN where the base is zero.

    Args:
        values: task -> metric -> value.
        baseline: the same of the baseline, usually the single-task models.
        directions: the metrics that count, in order: task -> metric -> whether higher is better.
        definition: one of `DELTA_M`.
    """
    gains = []
    for task, metrics in directions.items():
        counted = list(metrics.items())[:1] if definition.first_only else list(metrics.items())
        gains.append(
            [
                (1 if higher else -1)
                * (values[task][name] - baseline[task][name])
                / (baseline[task][name] or math.nan)
                for name, higher in counted
            ]
        )
    if definition.pooled:
        gains = [[gain for terms in gains for gain in terms]]
    mean = statistics.fmean(statistics.fmean(terms) for terms in gains)
    return 100 * (mean if definition.higher_is_better else -mean)
