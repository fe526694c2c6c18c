"""The tables of a comparison, as texts: the same for Markdown, LaTeX and the HTML page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, final

import attrs

from mtlcore.results.comparison import Comparison
from mtlcore.results.statistics import Difference, Spread
from mtlcore.results.targets import Reached, Target
from mtlcore.results.variants import Variant

_T = TypeVar("_T")

#: With fewer seeds an interval is so wide that the tables say so.
FEW_SEEDS = 5

_MISSING = "-"
_NAN = "NaN"
_COSTS = ("ms per step", "peak MB")  # columns that are left out where nothing was measured


@final
@attrs.frozen
class Entry:
    """The text of one place in a table."""

    text: str
    bold: bool = False


@final
@attrs.frozen
class SummaryTable:
    """A table with its title; the first column names the variant."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Entry]]


def tables_of(comparison: Comparison) -> Iterator[SummaryTable]:
    """Yield all tables of a comparison, in order."""
    yield _overview(comparison)
    for task in comparison.higher_is_better:
        yield _task_table(comparison, task, comparison.higher_is_better[task])
        yield from _region_tables(comparison, task)
    if comparison.targets:
        yield _target_table(comparison)
    if fewest_common_seeds(comparison):
        yield from _difference_tables(comparison)


def _overview(comparison: Comparison) -> SummaryTable:
    arrow = _arrow(comparison.definition.higher_is_better)
    spreads = [comparison.delta_m(variant) for variant in comparison.variants]
    ranks = [comparison.mean_rank(variant) for variant in comparison.variants]
    means = [
        spread.mean
        for spread, variant in zip(spreads, comparison.variants, strict=True)
        if spread is not None and variant.name != comparison.baseline
    ]
    best = _top(means, comparison.definition.higher_is_better)
    best_rank = _top([rank for rank in ranks if rank is not None], higher=False)
    rows = []
    for variant, spread, rank in zip(comparison.variants, spreads, ranks, strict=True):
        is_baseline = variant.name == comparison.baseline
        rows.append(
            [
                Entry(f"{variant.name} (baseline)" if is_baseline else variant.name),
                Entry(_spread(spread, 2), not is_baseline and _is(spread, best)),
                Entry(_number(rank, 2), rank is not None and rank == best_rank),
                Entry(_number(variant.parameters, 0)),
                Entry(_milliseconds(variant.seconds_per_step)),
                Entry(_megabytes(variant.peak_memory)),
                Entry(_number(variant.best_epoch, 1)),
                Entry(_seeds(comparison, variant)),
            ]
        )
    head = [
        "variant", f"Δm % {arrow}", "mean rank ↓", "parameters", "ms per step", "peak MB",
        "best epoch", "seeds",
    ]  # fmt: skip
    measured = [
        any(row[number].text != _NAN for row in rows) or head[number] not in _COSTS
        for number in range(len(head))
    ]
    return SummaryTable("All tasks", _those(head, measured), [_those(r, measured) for r in rows])


def _task_table(
    comparison: Comparison, task: str, higher_is_better: Mapping[str, bool], title: str = ""
) -> SummaryTable:
    columns = []
    for metric in higher_is_better:
        spreads = [comparison.spread(variant, task, metric) for variant in comparison.variants]
        decimals = _decimals(spread.mean for spread in spreads if spread is not None)
        best = comparison.best(task, metric)
        columns.append(
            [
                Entry(_spread(spread, decimals), variant.name in best)
                for variant, spread in zip(comparison.variants, spreads, strict=True)
            ]
        )
    unit = comparison.units.get(task)
    return SummaryTable(
        (f"{task} ({unit})" if unit else task) + title,
        _head(higher_is_better),
        _rows(comparison.variants, columns),
    )


def _region_tables(comparison: Comparison, task: str) -> Iterator[SummaryTable]:
    """Yield the task's first metric in the region of each class; the others are in the files."""
    first = next(iter(comparison.higher_is_better[task]))
    regional = {
        metric: higher
        for metric, higher in comparison.directions[task].items()
        if metric.startswith(f"{first}/")
    }
    if regional:
        yield _task_table(comparison, task, regional, f": {first} by region")


def _target_table(comparison: Comparison) -> SummaryTable:
    return SummaryTable(
        "First reached",
        ["variant", *(_target_head(comparison, target) for target in comparison.targets)],
        [
            [
                Entry(variant.name),
                *(Entry(_reached(comparison.reached(variant, t))) for t in comparison.targets),
            ]
            for variant in comparison.variants
        ],
    )


def _difference_tables(comparison: Comparison) -> Iterator[SummaryTable]:
    others = [v for v in comparison.variants if v.name != comparison.baseline]
    fewest = fewest_common_seeds(comparison)
    title = f"difference from {comparison.baseline}"
    if fewest > 1:
        title += " [95 % interval]" if fewest >= FEW_SEEDS else " [95 % interval, wide: few seeds]"
    arrow = _arrow(comparison.definition.higher_is_better)
    differences = [comparison.delta_m_difference(variant) for variant in others]
    yield SummaryTable(
        f"Δm: {title}",
        ["variant", f"Δm % {arrow}"],
        [
            [Entry(variant.name), Entry(_difference(difference, 2))]
            for variant, difference in zip(others, differences, strict=True)
        ],
    )
    for task, higher_is_better in comparison.higher_is_better.items():
        columns = []
        for metric in higher_is_better:
            decimals = _decimals(
                spread.mean
                for variant in comparison.variants
                if (spread := comparison.spread(variant, task, metric)) is not None
            )
            columns.append(
                [
                    Entry(_difference(comparison.difference(variant, task, metric), decimals))
                    for variant in others
                ]
            )
        yield SummaryTable(f"{task}: {title}", _head(higher_is_better), _rows(others, columns))


def _those(items: Sequence[_T], chosen: Sequence[bool]) -> list[_T]:
    return [item for item, is_chosen in zip(items, chosen, strict=True) if is_chosen]


def _head(higher_is_better: Mapping[str, bool]) -> list[str]:
    return ["variant", *(f"{m} {_arrow(higher)}" for m, higher in higher_is_better.items())]


def _rows(variants: Sequence[Variant], columns: Sequence[Sequence[Entry]]) -> list[list[Entry]]:
    return [
        [Entry(variant.name), *(column[number] for column in columns)]
        for number, variant in enumerate(variants)
    ]


def fewest_common_seeds(comparison: Comparison) -> int:
    """Return the fewest seeds that a difference is taken over; 0 without a difference."""
    counts = [
        difference.n
        for variant in comparison.variants
        if variant.name != comparison.baseline
        for column in comparison.columns
        if (difference := comparison.difference(variant, *column)) is not None
    ]
    return min(counts, default=0)


# Texts


def _arrow(higher: bool) -> str:
    return "↑" if higher else "↓"


def _decimals(values: Iterable[float]) -> int:
    """Return how many decimals show four significant digits of the largest value."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    return min(6, max(0, 3 - math.floor(math.log10(max(sizes))))) if sizes else 4


def _number(value: float | None, decimals: int) -> str:
    if value is None:
        return _MISSING
    return f"{value:,.{decimals}f}" if math.isfinite(value) else _NAN


def _spread(spread: Spread | None, decimals: int) -> str:
    if spread is None or not math.isfinite(spread.mean):
        return _MISSING if spread is None else _NAN
    mean = f"{spread.mean:z.{decimals}f}"
    return mean if spread.n < 2 else f"{mean} ± {spread.std:.{decimals}f}"


def _difference(difference: Difference | None, decimals: int) -> str:
    if difference is None or not math.isfinite(difference.mean):
        return _MISSING if difference is None else _NAN
    text = f"{difference.mean:+.{decimals}f}"
    if difference.n < 2:
        return text
    low, high = difference.interval
    star = " *" if difference.excludes_zero else ""
    return f"{text} [{low:+.{decimals}f}, {high:+.{decimals}f}]{star}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if math.isfinite(seconds) else _NAN


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}" if math.isfinite(size) else _NAN


def _seeds(comparison: Comparison, variant: Variant) -> str:
    incomplete = {cell.seed for cell in variant.failed}
    complete = len([seed for seed in variant.seeds if seed not in incomplete])
    wanted = len({*comparison.seeds, *incomplete})
    return str(complete) if complete == wanted else f"{complete} of {wanted}"


def _target_head(comparison: Comparison, target: Target) -> str:
    higher = comparison.higher_is_better.get(target.task, {}).get(target.metric, False)
    return f"{target.task} {target.metric} {'≥' if higher else '≤'} {target.value:g}"


def _reached(by_seed: Mapping[int, Reached | None]) -> str:
    if not by_seed:
        return _MISSING
    times = [reached for reached in by_seed.values() if reached is not None]
    if not times:
        return "never"
    epoch = statistics.fmean(reached.epoch for reached in times)
    seconds = statistics.fmean(reached.seconds for reached in times)
    text = f"epoch {epoch:.1f}, {seconds:.1f} s"
    return text if len(times) == len(by_seed) else f"{text} ({len(times)} of {len(by_seed)} seeds)"


def _top(values: Sequence[float], higher: bool) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return (max if higher else min)(finite) if finite else None


def _is(spread: Spread | None, top: float | None) -> bool:
    return spread is not None and top is not None and spread.mean == top
