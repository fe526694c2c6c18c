"""The figures of a run beside those of the best constants, as rows and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, final

import attrs

from mtlcore.storage import or_nan

if TYPE_CHECKING:
    from rich.table import Table

_EXTENTS = ("global", "pixel")  # of the best constants


def result_table(summary: Mapping[str, Any]) -> Table:
    """The figures of a run beside those of the best constants, as a rich table.

    Args:
        summary: what summary.json holds; NaN or null is shown as "n/a".
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", caption_style="")
    for title in ("task", "figure", "model", "constant", "per pixel"):
        table.add_column(title, justify="left" if title in ("task", "figure") else "right")
    rows = result_rows(summary)
    for row in rows:
        star, style = ("* ", "bold green") if row.better else ("", "")
        model = Text(star + figure_text(row.model), style=style)
        constants = [figure_text(value) for value in row.constants]
        table.add_row(Text(row.task), Text(row.figure), model, *constants, end_section=row.last)
    table.caption = Text("\n".join(result_notes(summary, rows)))
    return table


@final
@attrs.frozen(kw_only=True)
class ResultRow:
    """One figure of one task; a constant that does not exist is None, one without value NaN.

    Args:
        task: its name and unit in the task's first row, else empty.
        figure: its name, and an arrow towards what is better.
        model: its value.
        constants: of the best constant and of the best one per pixel.
        better: whether the model beats every constant there is.
        last: of its task.
    """

    task: str
    figure: str
    model: float
    constants: tuple[float | None, ...]
    better: bool
    last: bool


def result_rows(summary: Mapping[str, Any]) -> list[ResultRow]:
    """The final figures of a run, beside those of the best constants."""
    final = summary["final"][summary["final_split"]]
    return [row for task, figures in final.items() for row in _task_rows(summary, task, figures)]


def _task_rows(
    summary: Mapping[str, Any], task: str, figures: Mapping[str, Any]
) -> list[ResultRow]:
    unit = summary.get("units", {}).get(task)
    rows: list[ResultRow] = []
    for metric, value in figures.items():
        higher = summary.get("directions", {}).get(task, {}).get(metric)
        arrow = {True: " ↑", False: " ↓", None: ""}[higher]
        constants = tuple(_constant(summary, extent, task, metric) for extent in _EXTENTS)
        rows.append(
            ResultRow(
                task=("" if rows else f"{task} ({unit})" if unit else task),
                figure=metric + arrow,
                model=or_nan(value),
                constants=constants,
                better=higher is not None and _beats(or_nan(value), constants, higher),
                last=len(rows) == len(figures) - 1,
            )
        )
    return rows


def _constant(summary: Mapping[str, Any], extent: str, task: str, metric: str) -> float | None:
    figures = summary.get("constants", {}).get(extent, {}).get(task, {})
    return or_nan(figures[metric]) if metric in figures else None


def _beats(value: float, constants: Sequence[float | None], higher: bool) -> bool:
    """Whether it is better than every constant there is, and there is one."""
    known = [c for c in constants if c is not None and not math.isnan(c)]
    return bool(known) and all(value > c if higher else value < c for c in known)


def result_notes(summary: Mapping[str, Any], rows: Sequence[ResultRow]) -> list[str]:
    """What must be known to read the figures, and what they cost."""
    notes = []
    if any(row.better for row in rows):
        notes.append("* better than the best constants, which look at no image")
    values = [value for row in rows for value in (row.model, *row.constants) if value is not None]
    if any(math.isnan(value) for value in values):
        notes.append("n/a: nothing to measure, no valid label or no finite value")
    number, split = summary.get("averaged_over", 1), summary["final_split"]
    over = "the last evaluation" if number == 1 else f"mean of the last {number} evaluations"
    notes.append(f"final figures: {over} on {split}")
    best = summary.get("best") or {}
    if best.get("epoch") is not None:
        notes.append(f"best epoch: {best['epoch']}, chosen on {best.get('chosen_on', split)}")
    notes.append(f"parameters: {summary['parameters']['total']:,}")
    notes.append(f"time: {timedelta(seconds=round(summary['seconds']))}")
    if summary.get("skipped_steps"):
        notes.append(f"skipped steps: {summary['skipped_steps']}")
    if summary.get("skipped_samples"):
        notes.append(f"samples left out: {len(summary['skipped_samples'])} (see summary.json)")
    return notes


def figure_text(value: float | None) -> str:
    """A figure as tables have it: "-" for one that there is not, "n/a" for NaN."""
    if value is None:
        return "-"
    return "n/a" if math.isnan(value) else f"{value:#.4g}".rstrip(".")
