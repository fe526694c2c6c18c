"""What the trials of a search have reached: their objectives, the best one, the Pareto front."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, final

import attrs

from mtlcore.errors import UsageError, did_you_mean
from mtlcore.metrics import MetricValues, delta_m
from mtlcore.results.comparison import Comparison
from mtlcore.results.variants import Variant
from mtlcore.storage import RunFiles, StoredSearch

#: The objective that compares with the baseline; all others are "task.metric".
DELTA = "delta_m"


@final
@attrs.frozen(kw_only=True)
class TrialResult:
    """A trial with its objectives.

    Args:
        name: Of its variant.
        parameters: Path of each setting that was chosen -> its value.
        values: One per objective, the mean over seeds; NaN where it has no result.
    """

    name: str
    parameters: Mapping[str, Any]
    values: tuple[float, ...]

    @property
    def has_values(self) -> bool:
        """Whether all objectives are finite."""
        return all(map(math.isfinite, self.values))


@final
@attrs.frozen(kw_only=True)
class SearchResult:
    """The trials of a search.

    Args:
        objectives: What is to become best.
        higher_is_better: Of each objective.
        trials: In the order in which they were begun.
    """

    objectives: tuple[str, ...]
    higher_is_better: tuple[bool, ...]
    trials: tuple[TrialResult, ...]

    def costs(self, values: Sequence[float]) -> tuple[float, ...]:
        """Return objectives such that lower is better."""
        pairs = zip(values, self.higher_is_better, strict=True)
        return tuple(-value if higher else value for value, higher in pairs)

    @property
    def front(self) -> tuple[TrialResult, ...]:
        """The trials than which no other is as good in all objectives and better in one.

        With one objective these are the best one and its equals; by the first objective.
        """
        costs = [(one, self.costs(one.values)) for one in self.trials if one.has_values]
        front = [(one, own) for one, own in costs if not any(_dominates(c, own) for _, c in costs)]
        return tuple(one for one, _ in sorted(front, key=lambda pair: pair[1]))


def search_result(comparison: Comparison) -> SearchResult | None:
    """Return the trials of a study; None where it has no search, or no trial has a result.

    Raises:
        UsageError: An objective names a metric that the runs do not have.
    """
    search = comparison.search
    if search is None or not comparison.runs:
        return None
    by_name = {variant.name: variant for variant in comparison.variants}
    return SearchResult(
        objectives=search.objectives,
        higher_is_better=tuple(direction(comparison, name) for name in search.objectives),
        trials=tuple(
            TrialResult(
                name=trial.name,
                parameters=trial.parameters,
                values=objectives(comparison, by_name[trial.name], search),
            )
            for trial in search.trials
            if trial.name in by_name
        ),
    )


def direction(comparison: Comparison, objective: str) -> bool:
    """Return whether higher is better.

    Raises:
        UsageError: No run has this metric.
    """
    if objective == DELTA:
        return comparison.definition.higher_is_better
    task, metric = objective.split(".")
    table = comparison.directions
    if metric not in table.get(task, {}):
        known = [f"{task}.{metric}" for task, metrics in table.items() for metric in metrics]
        raise UsageError(
            f"search.objectives: no run has {objective}{did_you_mean(objective, known)} (there "
            f"are: {', '.join(known)})"
        )
    return table[task][metric]


def objectives(comparison: Comparison, variant: Variant, search: StoredSearch) -> tuple[float, ...]:
    """Return the objectives of a trial, means over its seeds; NaN where a cell has no result."""
    if variant.failed or not variant.runs:
        return (math.nan,) * len(search.objectives)
    values = []
    for name in search.objectives:
        spread = (
            comparison.delta_m(variant)
            if name == DELTA
            else comparison.spread(variant, *name.split("."))
        )
        values.append(math.nan if spread is None else spread.mean)
    return tuple(values)


def evaluations(
    comparison: Comparison, by_seed: Mapping[int, Sequence[RunFiles]], objective: str
) -> dict[int, float]:
    """Return the objective of a trial that still runs: epoch -> mean over its seeds.

    Epochs that some cell has not evaluated are left out.

    Args:
        comparison: With the baseline, and with directions.
        by_seed: Seed -> the files of its runs.
        objective: The only one.
    """
    tables = [_by_epoch(runs) for runs in by_seed.values()]
    common = set.intersection(*(set(table) for table in tables)) if tables else set()
    found = {}
    for epoch in sorted(common):
        values = [_value(comparison, table[epoch], objective) for table in tables]
        if None not in values:
            found[epoch] = statistics.fmean(value for value in values if value is not None)
    return found


def _by_epoch(runs: Sequence[RunFiles]) -> dict[int, dict[str, dict[str, float]]]:
    table: dict[int, dict[str, dict[str, float]]] = {}
    for run in runs:
        for record in run.records:
            if record["split"] == "val" and record["task"] is not None:
                metrics = table.setdefault(record["epoch"], {}).setdefault(record["task"], {})
                metrics[record["metric"]] = record["value"]
    return table


def _value(comparison: Comparison, metrics: MetricValues, objective: str) -> float | None:
    if objective != DELTA:
        task, metric = objective.split(".")
        return metrics.get(task, {}).get(metric)
    counted = comparison.counted
    if any(metric not in metrics.get(t, {}) for t, names in counted.items() for metric in names):
        return None
    base = comparison.baseline_means
    return None if base is None else delta_m(metrics, base, counted, comparison.definition)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
