"""The metrics of a run beside those of the best constants, as rows and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, final

import attrs

from mtlcore.metrics import is_regional
from mtlcore.report.charts.run_charts import arrow_of
from mtlcore.storage import or_nan

if TYPE_CHECKING:
    from rich.table import Table

_EXTENTS = ("global", "pixel")  # of the best constants


def result_table(summary: Mapping[str, Any]) -> Table:
    """Return the metrics of a run beside those of the best constants, as a rich table.

    Args:
        summary: The content of summary.json; NaN or null is shown as "n/a".
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", caption_style="")
    for title in ("task", "metric", "model", "constant", "per pixel"):
        table.add_column(title, justify="left" if title in ("task", "metric") else "right")
    rows = result_rows(summary)
    for row in rows:
        star, style = ("* ", "bold green") if row.better else ("", "")
        model = Text(star + metric_text(row.model), style=style)
        constants = [metric_text(value) for value in row.constants]
        table.add_row(Text(row.task), Text(row.metric), model, *constants, end_section=row.last)
    table.caption = Text("\n".join(result_notes(summary, rows)))
    return table


@final
@attrs.frozen(kw_only=True)
class ResultRow:
    """One metric of one task.

    Args:
        task: Name and unit of the task in its first row, else empty.
        metric: Name of the metric, and an arrow towards better values.
        model: Value of the model.
        constants: Values of the best constant and of the best one per pixel; None where there is
            no such constant, NaN where it has no value.
        better: Whether the model beats every constant there is.
        last: Whether it is the last row of its task.
    """

    task: str
    metric: str
    model: float
    constants: tuple[float | None, ...]
    better: bool
    last: bool


def result_rows(summary: Mapping[str, Any]) -> list[ResultRow]:
    """Return the final metrics of a run, beside those of the best constants.

    Those in the region of a class are left out; `region_tables` has them.
    """
    final = summary["final"][summary["final_split"]]
    return [row for task, metrics in final.items() for row in _task_rows(summary, task, metrics)]


@final
@attrs.frozen(kw_only=True)
class RegionTable:
    """A task's metrics in the region of each class.

    Args:
        task: Name and unit of the task.
        metrics: Names of the metrics, with an arrow towards better values.
        rows: Name of each class, and its values.
    """

    task: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]


def region_tables(summary: Mapping[str, Any]) -> list[RegionTable]:
    """Return the final metrics of a run by region, a table for each task that has some."""
    tables = []
    for task, metrics in summary["final"][summary["final_split"]].items():
        by_region: dict[str, dict[str, float]] = {}
        for metric, value in metrics.items():
            if is_regional(metric):
                name, _, region = metric.partition("/")
                by_region.setdefault(region, {})[name] = or_nan(value)
        if by_region:
            names = list(next(iter(by_region.values())))
            unit = summary.get("units", {}).get(task)
            higher = summary.get("higher_is_better", {}).get(task, {})
            table = RegionTable(
                task=f"{task} ({unit})" if unit else task,
                metrics=tuple(name + arrow_of(higher.get(name)) for name in names),
                rows=tuple(
                    (region, tuple(values.get(name, math.nan) for name in names))
                    for region, values in by_region.items()
                ),
            )
            tables.append(table)
    return tables


def _task_rows(
    summary: Mapping[str, Any], task: str, metrics: Mapping[str, Any]
) -> list[ResultRow]:
    unit = summary.get("units", {}).get(task)
    rows: list[ResultRow] = []
    counted = {metric: value for metric, value in metrics.items() if not is_regional(metric)}
    for metric, value in counted.items():
        higher = summary.get("higher_is_better", {}).get(task, {}).get(metric)
        constants = tuple(_constant(summary, extent, task, metric) for extent in _EXTENTS)
        rows.append(
            ResultRow(
                task=("" if rows else f"{task} ({unit})" if unit else task),
                metric=metric + arrow_of(higher),
                model=or_nan(value),
                constants=constants,
                better=higher is not None and _beats(or_nan(value), constants, higher),
                last=len(rows) == len(counted) - 1,
            )
        )
    return rows


def _constant(summary: Mapping[str, Any], extent: str, task: str, metric: str) -> float | None:
    metrics = summary.get("constants", {}).get(extent, {}).get(task, {})
    return or_nan(metrics[metric]) if metric in metrics else None


def _beats(value: float, constants: Sequence[float | None], higher: bool) -> bool:
    """Return whether a value is better than every constant, of which there is one."""
    known = [c for c in constants if c is not None and not math.isnan(c)]
    return bool(known) and all(value > c if higher else value < c for c in known)


def result_notes(summary: Mapping[str, Any], rows: Sequence[ResultRow]) -> list[str]:
    """Return what must be known to read the metrics, and what they cost."""
    notes = []
    if any(row.better for row in rows):
        notes.append("* better than the best constants, which look at no input")
    values = [value for row in rows for value in (row.model, *row.constants) if value is not None]
    if any(math.isnan(value) for value in values):
        notes.append("n/a: nothing to measure, no valid label or no finite value")
    number, split = summary.get("averaged_over", 1), summary["final_split"]
    over = "the last evaluation" if number == 1 else f"mean of the last {number} evaluations"
    notes.append(f"final metrics: {over} on {split}")
    best = summary.get("best") or {}
    if best.get("epoch") is not None:
        by = best.get("chosen_by") or []
        how = f" by {'the mean rank of ' if len(by) > 1 else ''}{', '.join(by)}" if by else ""
        notes.append(f"best epoch: {best['epoch']}, chosen on {best.get('chosen_on', split)}{how}")
    notes.append(f"parameters: {learning_told(summary['parameters'])}")
    if "flops" in summary:
        notes.append(f"a prediction: {summary['flops'] / 1e9:.3g} GFLOPs")
    notes.append(f"time: {timedelta(seconds=round(summary['seconds']))}")
    if summary.get("skipped_steps"):
        notes.append(f"skipped steps: {summary['skipped_steps']}")
    if summary.get("skipped_samples"):
        notes.append(f"samples left out: {len(summary['skipped_samples'])} (see summary.json)")
    return notes


def learning_told(parameters: Mapping[str, Any]) -> str:
    """Return how many parameters a model has, and how many of them learn where not all do."""
    total, learning = parameters["total"], parameters.get("trainable")
    some = "" if learning in (None, total) else f", of which {learning:,} learn"
    return f"{total:,}{some}"


def metric_text(value: float | None) -> str:
    """Return a value with four significant digits, "-" for None and "n/a" for NaN."""
    if value is None:
        return "-"
    return "n/a" if math.isnan(value) else f"{value:#.4g}".rstrip(".")
