"""A comparison as data: CSV and JSON."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator
from typing import Any

import attrs

from mtlcore.results.comparison import Comparison
from mtlcore.results.notes import notes_of
from mtlcore.results.statistics import Difference, Spread
from mtlcore.results.variants import Variant

_CSV_HEAD = (
    "variant", "task", "metric", "higher_is_better", "unit", "mean", "std", "n", "best",
    "baseline", "difference", "low", "high", "n_common",
)  # fmt: skip


def as_csv(comparison: Comparison) -> str:
    """Return a line per variant and metric in full precision; what tasks share has no task."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for variant in comparison.variants:
        for line in _csv_lines(comparison, variant):
            writer.writerow([variant.name, *("" if value is None else value for value in line)])
    return text.getvalue()


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Return everything, with the value of each seed, as a JSON tree; NaN stays NaN."""
    definition = comparison.definition
    return {
        "title": comparison.title,
        "baseline": comparison.baseline,
        "seeds": list(comparison.seeds),
        "epoch": comparison.epoch,
        "split": "val",
        "best_epoch_chosen_on": comparison.chosen_on,
        "delta_m": {
            "name": definition.name,
            "formula": definition.formula,
            "higher_is_better": definition.higher_is_better,
        },
        "higher_is_better": {
            task: dict(metrics) for task, metrics in comparison.directions.items()
        },
        "units": dict(comparison.units),
        "variants": [_variant_data(comparison, variant) for variant in comparison.variants],
        "notes": notes_of(comparison),
    }


def _csv_lines(comparison: Comparison, variant: Variant) -> Iterator[list[Any]]:
    base = comparison.baseline
    for task, metric in comparison.all_columns:
        spread = comparison.spread(variant, task, metric)
        if spread is None:
            continue
        difference = comparison.difference(variant, task, metric)
        yield [
            task, metric, comparison.directions[task][metric], comparison.units.get(task),
            spread.mean, spread.std, spread.n, variant.name in comparison.best(task, metric),
            base, *_interval(difference),
        ]  # fmt: skip
    delta = comparison.delta_m(variant)
    if delta is not None:
        yield [
            "", f"delta_m:{comparison.definition.name}", comparison.definition.higher_is_better,
            "%", delta.mean, delta.std, delta.n, None, base,
            *_interval(comparison.delta_m_difference(variant)),
        ]  # fmt: skip
    for name, value, unit in (
        ("mean_rank", comparison.mean_rank(variant), None),
        ("parameters", variant.parameters, None),
        ("seconds_per_step", variant.seconds_per_step, "s"),
        ("peak_memory", variant.peak_memory, "byte"),
        ("best_epoch", variant.best_epoch, None),
    ):
        if value is not None:
            yield ["", name, False, unit, value, *[None] * 8]
    for target in comparison.targets:
        by_seed = comparison.reached(variant, target)
        times = [reached for reached in by_seed.values() if reached is not None]
        for name, unit in (("epoch", None), ("seconds", "s")):
            mean = statistics.fmean(getattr(t, name) for t in times) if times else None
            yield [
                target.task, f"{name}_to:{target.metric}={target.value:g}", False, unit, mean,
                None, len(times), *[None] * 6,
            ]  # fmt: skip


def _interval(difference: Difference | None) -> list[Any]:
    if difference is None:
        return [None] * 4
    return [difference.mean, *difference.interval, difference.n]


def _variant_data(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    metrics: dict[str, dict[str, Any]] = {}
    for task, metric in comparison.all_columns:
        spread = comparison.spread(variant, task, metric)
        if spread is not None:
            metrics.setdefault(task, {})[metric] = {
                **_spread_data(spread),
                "best": variant.name in comparison.best(task, metric),
                "difference": _difference_data(comparison.difference(variant, task, metric)),
            }
    delta = comparison.delta_m(variant)
    return {
        "name": variant.name,
        "single_task": variant.single_task,
        "groups": variant.groups,
        "runs": [run.location for run in variant.all_runs],
        "metrics": metrics,
        "delta_m": None
        if delta is None
        else {
            **_spread_data(delta),
            "difference": _difference_data(comparison.delta_m_difference(variant)),
        },
        "mean_rank": comparison.mean_rank(variant),
        "parameters": variant.parameters,
        "seconds_per_step": variant.seconds_per_step,
        "peak_memory": variant.peak_memory,
        "best_epoch": variant.best_epoch,
        "targets": {
            str(target): {
                str(seed): None if reached is None else attrs.asdict(reached)
                for seed, reached in comparison.reached(variant, target).items()
            }
            for target in comparison.targets
        },
        "failed": [attrs.asdict(cell) for cell in variant.failed],
    }


def _spread_data(spread: Spread) -> dict[str, Any]:
    values = {str(seed): value for seed, value in spread.values.items()}
    return {"mean": spread.mean, "std": spread.std, "n": spread.n, "values": values}


def _difference_data(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    low, high = difference.interval
    values = {str(seed): value for seed, value in difference.values.items()}
    return {"mean": difference.mean, "low": low, "high": high, "n": difference.n, "values": values}
