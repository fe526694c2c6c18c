"""Variants against each other and a baseline, over seeds."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from functools import cached_property
from typing import final

import attrs

from mtlcore.errors import UsageError, did_you_mean
from mtlcore.metrics import DELTA_M, DeltaM, MetricValues, delta_m, is_regional
from mtlcore.results.run_results import Epoch, RunResult
from mtlcore.results.statistics import Difference, Spread
from mtlcore.results.targets import Reached, Target
from mtlcore.results.variants import Variant
from mtlcore.storage import StoredSearch, or_nan

Column = tuple[str, str]  # a task and one of its metrics


@final
@attrs.define(kw_only=True, slots=False)
class Comparison:
    """Variants against each other and a baseline.

    Losses are not compared, as they are no metrics. What a variant does not have, such as the
    metrics of a task that it did not learn, is None.

    Args:
        title: Title of the tables.
        variants: The variants, in order.
        baseline: Name of the variant that the others are compared with.
        definition: Definition of delta_m.
        epoch: "last" or "best", the evaluations that are compared; see `RunResult.metrics`.
        targets: Targets whose first reaching is looked for.
        notes: What else a reader should know, one sentence each.
        search: The trials among the variants, of a study that has a search.
    """

    title: str
    variants: tuple[Variant, ...]
    baseline: str
    definition: DeltaM
    epoch: Epoch = "last"
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()
    search: StoredSearch | None = None

    def variant(self, name: str) -> Variant:
        """Return the variant of that name."""
        return next(variant for variant in self.variants if variant.name == name)

    @cached_property
    def runs(self) -> tuple[RunResult, ...]:
        """The runs of all variants."""
        return tuple(run for variant in self.variants for run in variant.all_runs)

    @cached_property
    def higher_is_better(self) -> Mapping[str, Mapping[str, bool]]:
        """Task -> metric -> whether higher is better: the metrics that count, without losses."""
        return {
            task: {m: higher for m, higher in metrics.items() if not is_regional(m)}
            for task, metrics in self.directions.items()
        }

    @cached_property
    def counted(self) -> Mapping[str, Mapping[str, bool]]:
        """Those of the tasks that the baseline learns, over which delta_m and ranks are taken.

        A baseline that lacks a cell counts as if it learnt all tasks.
        """
        baseline = self.variant(self.baseline)
        learnt = {task for run in baseline.all_runs for task in run.tasks}
        if baseline.failed or not learnt:
            return self.higher_is_better
        return {task: found for task, found in self.higher_is_better.items() if task in learnt}

    @cached_property
    def directions(self) -> Mapping[str, Mapping[str, bool]]:
        """The same with the metrics of single regions, in the runs' order."""
        table: dict[str, dict[str, bool]] = {}
        # Runs with the most tasks first, so that tasks come in the order of a run with all.
        for run in sorted(self.runs, key=lambda run: -len(run.tasks)):
            for task in run.tasks:
                for metric, higher in run.higher_is_better[task].items():
                    if metric != "loss":
                        table.setdefault(task, {})[metric] = higher
        return table

    @cached_property
    def units(self) -> Mapping[str, str]:
        """Task -> the unit of its labels, where it has one."""
        return {
            task: unit for run in self.runs for task, unit in run.summary.get("units", {}).items()
        }

    def place(self, location: str) -> str:
        """Return a cell's directory without what it has in common with those of all cells."""
        every = [run.location for run in self.runs]
        every += [cell.location for variant in self.variants for cell in variant.failed]
        folders = [place.split("/")[:-1] for place in every]
        pairs = zip(min(folders), max(folders), strict=False)  # all are between these two
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
        return "/".join(location.split("/")[same:])

    @property
    def columns(self) -> tuple[Column, ...]:
        """Every (task, metric) that counts."""
        return _pairs(self.higher_is_better)

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """Every (task, metric), those of single regions after all others."""
        every = [(task, metric) for task, metrics in self.directions.items() for metric in metrics]
        return tuple(sorted(every, key=lambda column: is_regional(column[1])))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all variants."""
        return tuple(sorted({seed for variant in self.variants for seed in variant.seeds}))

    @property
    def chosen_on(self) -> str:
        """The split whose metrics chose the best epoch."""
        return ", ".join(sorted({str(run.summary["best"]["chosen_on"]) for run in self.runs}))

    def spread(self, variant: Variant, task: str, metric: str) -> Spread | None:
        """Return a metric of a variant over its seeds; None where no seed has the task."""
        by_seed = {seed: variant.metrics(seed, self.epoch) for seed in variant.seeds}
        values = {
            seed: or_nan(metrics[task].get(metric))
            for seed, metrics in by_seed.items()
            if task in metrics
        }
        return Spread(values) if values else None

    def best(self, task: str, metric: str) -> frozenset[str]:
        """Return the names of the variants with the best mean; none where all means are equal."""
        means = {}
        for variant in self.variants:
            spread = self.spread(variant, task, metric)
            if spread is not None and math.isfinite(spread.mean):
                means[variant.name] = _comparable(spread.mean)
        if len(set(means.values())) < 2:
            return frozenset()
        top = (max if self.directions[task][metric] else min)(means.values())
        return frozenset(name for name, mean in means.items() if mean == top)

    def delta_m(self, variant: Variant) -> Spread | None:
        """Return delta_m of each seed over the baseline's mean metrics, in percent.

        Its mean is delta_m of the mean metrics, as papers report it, and its spread is the
        variant's own. None where the variant lacks a task of the baseline in every seed, or the
        baseline itself does.
        """
        base = self.baseline_means
        if base is None:
            return None
        values = {}
        for seed in variant.seeds:
            metrics = variant.metrics(seed, self.epoch)
            if set(self.counted) <= set(metrics):
                values[seed] = delta_m(metrics, base, self.counted, self.definition)
        return Spread(values) if values else None

    @cached_property
    def baseline_means(self) -> MetricValues | None:
        """The baseline's metrics, means over its seeds; None where it lacks one that counts."""
        base: dict[str, dict[str, float]] = {}
        for task, metric in _pairs(self.counted):
            spread = self.spread(self.variant(self.baseline), task, metric)
            if spread is None:
                return None
            base.setdefault(task, {})[metric] = spread.mean
        return base

    @property
    def failures(self) -> tuple[str, ...]:
        """The cells that should have a result: where there is a search, it may prune its trials."""
        trials = () if self.search is None else [trial.name for trial in self.search.trials]
        return tuple(
            f"{variant.name}, {cell.label}"
            for variant in self.variants
            for cell in variant.failed
            if not (cell.pruned and variant.name in trials)
        )

    def mean_rank(self, variant: Variant) -> float | None:
        """Return the variant's rank by mean, 1 the best, averaged over all metrics that count.

        Equal variants share the mean of their ranks and NaN comes last. Variants that lack a
        metric are not ranked: None.
        """
        return self._mean_ranks.get(variant.name)

    def difference(self, variant: Variant, task: str, metric: str) -> Difference | None:
        """Return variant minus baseline over their common seeds; None without a common seed."""
        return _paired(
            self.spread(variant, task, metric),
            self.spread(self.variant(self.baseline), task, metric),
        )

    def delta_m_difference(self, variant: Variant) -> Difference | None:
        """Return the difference of delta_m from the baseline's own over their common seeds."""
        return _paired(self.delta_m(variant), self.delta_m(self.variant(self.baseline)))

    def reached(self, variant: Variant, target: Target) -> Mapping[int, Reached | None]:
        """Return when each seed that has the task first reached the target; None: never."""
        return {
            seed: run.reached(target)
            for seed, runs in variant.runs.items()
            for run in runs
            if target.task in run.tasks
        }

    @cached_property
    def _mean_ranks(self) -> Mapping[str, float]:
        means_of: dict[str, list[float]] = {}
        for variant in self.variants:
            spreads = [self.spread(variant, *column) for column in _pairs(self.counted)]
            means = [spread.mean for spread in spreads if spread is not None]
            if means and len(means) == len(spreads):
                means_of[variant.name] = means
        ranks: dict[str, list[float]] = {name: [] for name in means_of}
        for number, (task, metric) in enumerate(_pairs(self.counted)):
            sign = -1 if self.counted[task][metric] else 1
            costs = {
                name: sign * _comparable(means[number])
                if math.isfinite(means[number])
                else math.inf
                for name, means in means_of.items()
            }
            for name, cost in costs.items():
                better = sum(other < cost for other in costs.values())
                equal = sum(other == cost for other in costs.values())
                ranks[name].append(better + (equal + 1) / 2)
        return {name: statistics.fmean(values) for name, values in ranks.items()}


def _pairs(metrics: Mapping[str, Mapping[str, bool]]) -> tuple[Column, ...]:
    return tuple((task, metric) for task, names in metrics.items() for metric in names)


def find_definition(name: str) -> DeltaM:
    """Return the definition of delta_m of that name.

    Raises:
        UsageError: There is none.
    """
    if name not in DELTA_M:
        raise UsageError(
            f"delta_m {name!r}: unknown{did_you_mean(name, DELTA_M)} (known: {', '.join(DELTA_M)})"
        )
    return DELTA_M[name]


def _comparable(mean: float) -> float:
    """Return a mean without its last digits, in which equal ones may differ by rounding."""
    return float(f"{mean:.8g}")


def _paired(values: Spread | None, base: Spread | None) -> Difference | None:
    if values is None or base is None:
        return None
    common = [seed for seed in values.values if seed in base.values]
    if not common:
        return None
    return Difference({seed: values.values[seed] - base.values[seed] for seed in common})
