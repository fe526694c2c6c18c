"""Metrics: accumulated over a whole split, never a mean of batch means."""

from __future__ import annotations

import abc
import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import final

import attrs
from torch import Tensor

from mtlcore.data import Batch
from mtlcore.tasks import Task

__all__ = [
    "DELTA_M",
    "DeltaM",
    "Metric",
    "MetricCollection",
    "MetricValues",
    "RegionalMetric",
    "beats",
    "delta_m",
    "is_regional",
    "mean_ranks",
]

#: Task -> metric -> value.
MetricValues = Mapping[str, Mapping[str, float]]


class Metric(abc.ABC):
    """Metrics of one task, computed together: `Metric(task, **settings)`.

    Attributes:
        higher_is_better: name of each metric that `compute` returns -> whether higher values are
            better. The first metric stands for the task where a single number is needed.
    """

    higher_is_better: Mapping[str, bool]

    def see(self, batch: Batch) -> None:
        """Look at the batch whose predictions `update` gets next; here, do nothing.

        Args:
            batch: with its inputs and the labels of all tasks.
        """
        return

    @abc.abstractmethod
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch.

        Args:
            prediction: raw output of the head, (B, task.channels, ...).
            target: `(B, *target_shape)`.
            valid: `(B, *valid_shape)` boolean; may be all False.
        """

    @abc.abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the metrics over everything accumulated; NaN where nothing valid was seen."""

    @abc.abstractmethod
    def merge(self, other: Metric) -> None:
        """Add what another instance, in another process, has accumulated."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Drop everything that was accumulated."""


@final
class MetricCollection(Metric):
    """Several `Metric` objects of one task behind one interface.

    Args:
        metrics: their results are returned in this order.

    Raises:
        ValueError: two of them have a metric of the same name.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = tuple(metrics)
        names = [name for metric in metrics for name in metric.higher_is_better]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several of its metrics compute {', '.join(twice)}")
        self.higher_is_better = {
            name: higher for metric in metrics for name, higher in metric.higher_is_better.items()
        }

    def see(self, batch: Batch) -> None:
        """Let every metric look at the batch."""
        for metric in self._metrics:
            metric.see(batch)

    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch in every metric."""
        for metric in self._metrics:
            metric.update(prediction, target, valid)

    def compute(self) -> dict[str, float]:
        """Return the metrics of the first, then of the second, and so on."""
        return {name: value for metric in self._metrics for name, value in metric.compute().items()}

    def merge(self, other: Metric) -> None:
        """Merge each metric with its counterpart."""
        assert isinstance(other, MetricCollection)
        for mine, theirs in zip(self._metrics, other._metrics, strict=True):
            mine.merge(theirs)

    def reset(self) -> None:
        """Reset every metric."""
        for metric in self._metrics:
            metric.reset()


def mean_ranks(evaluations: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the mean rank of each of several evaluations, 1 where it is the best of all tasks.

    For each task the evaluations are ranked by its value; equal ones share the mean of their ranks,
    and NaN is the worst. So tasks count alike whatever the scale and the sign of their values.

    Args:
        evaluations: Task -> value, of the same tasks in each; lower is better.
    """
    totals = [0.0] * len(evaluations)
    for task in evaluations[0] if evaluations else ():
        keys = [(math.isnan(values[task]), values[task]) for values in evaluations]
        keys = [(True, 0.0) if nan else (nan, value) for nan, value in keys]
        order = sorted(keys)
        for number, key in enumerate(keys):
            totals[number] += (bisect_left(order, key) + 1 + bisect_right(order, key)) / 2
    return [total / len(evaluations[0]) for total in totals]


def beats(evaluations: Sequence[Mapping[str, float]], best: int) -> bool:
    """Return whether the last evaluation has a lower mean rank than an earlier one.

    Args:
        evaluations: As of `mean_ranks`.
        best: The number of the earlier one.
    """
    ranks = mean_ranks(evaluations)
    return bool(ranks) and ranks[-1] < ranks[best]


_OF_REGION = "/"


def is_regional(metric: str) -> bool:
    """Return whether a name is that of a metric in the region of a class, "abs_error/wall"."""
    return _OF_REGION in metric


@final
class RegionalMetric(Metric):
    """A metric over everything, and once more in the region of each class of a task's labels.

    Of a metric `abs_error` and a class `wall` the latter is called `abs_error/wall`. Regions are
    those of the labels, not of predictions; elements without such a label are in none. The metric
    over everything comes first, and it alone counts where metrics are averaged or ranked.

    Args:
        make: returns a new metric.
        regions: a task of classes, for each pixel or each sample; those that it ignores have no
            region.

    Raises:
        ValueError: the task has no classes.
    """

    def __init__(self, make: Callable[[], Metric], regions: Task) -> None:
        if regions.dtype != "int64":
            raise ValueError(f"task {regions.name!r} has no classes that could be regions")
        self._name = regions.name
        self._whole = make()
        self._parts = {number: make() for number in regions.counted}
        unique = len(set(regions.class_names)) == regions.channels
        self._names = {n: regions.class_names[n] if unique else str(n) for n in regions.counted}
        self._batch: Batch | None = None
        self.higher_is_better = {
            **self._whole.higher_is_better,
            **{
                f"{metric}{_OF_REGION}{name}": higher
                for name in self._names.values()
                for metric, higher in self._whole.higher_is_better.items()
            },
        }

    def see(self, batch: Batch) -> None:
        """Look at the labels whose classes are the regions."""
        self._batch = batch
        for metric in (self._whole, *self._parts.values()):
            metric.see(batch)

    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch as a whole and in each region.

        Raises:
            ValueError: `see` was not called with the batch.
        """
        if self._batch is None:
            raise ValueError(f"no labels of {self._name} were seen whose classes are regions")
        classes, known = self._batch.targets[self._name], self._batch.valid[self._name]
        self._batch = None
        self._whole.update(prediction, target, valid)
        for number, metric in self._parts.items():
            region = (classes == number) & known
            region = region.view(*region.shape, *[1] * (valid.dim() - region.dim()))
            metric.update(prediction, target, valid & region)

    def compute(self) -> dict[str, float]:
        """Return the metric over everything, then by region; NaN where a class does not occur."""
        values = self._whole.compute()
        for number, metric in self._parts.items():
            found = metric.compute()
            values |= {f"{m}{_OF_REGION}{self._names[number]}": v for m, v in found.items()}
        return values

    def merge(self, other: Metric) -> None:
        """Merge the whole and every region with its counterpart."""
        assert isinstance(other, RegionalMetric)
        self._whole.merge(other._whole)
        for number, metric in self._parts.items():
            metric.merge(other._parts[number])

    def reset(self) -> None:
        """Reset the whole and every region."""
        for metric in (self._whole, *self._parts.values()):
            metric.reset()


@final
@attrs.frozen(kw_only=True)
class DeltaM:
    """A published definition of delta_m: a model's mean gain over a baseline, in percent.

    Args:
        name: as users write it.
        formula: in words, for tables.
        papers: that use it.
        first_only: whether only the first metric of each task counts.
        pooled: whether the mean is taken over all metrics; if not, over tasks, of the mean over
            each task's metrics.
        higher_is_better: whether a positive value is a gain.
    """

    name: str
    formula: str
    papers: str
    first_only: bool = False
    pooled: bool = False
    higher_is_better: bool = True


#: The definitions of delta_m in use; values of different definitions cannot be compared.
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
    higher_is_better: Mapping[str, Mapping[str, bool]],
    definition: DeltaM,
) -> float:
    """Compute the mean gain of a model over a baseline, in percent.

    The relative gain of a metric is `(value - base) / base`, negated where lower is better; it is
    NaN where the base is zero. The definition says whether a positive result is a gain.

    Args:
        values: task -> metric -> value.
        baseline: the same for the baseline, usually the single-task models.
        higher_is_better: task -> metric -> whether higher values are better; the metrics that
            count, in their order.
        definition: one of `DELTA_M`.
    """
    gains = []
    for task, metrics in higher_is_better.items():
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
