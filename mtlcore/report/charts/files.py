"""Charts as SVG files of their own, with their style inside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import final

import attrs

from mtlcore.report.charts.axes import HEIGHT, WIDTH
from mtlcore.report.charts.drawing import Chart, draw
from mtlcore.report.charts.labels import LETTER
from mtlcore.report.charts.lines import Line
from mtlcore.report.charts.run_charts import learning_charts, step_charts, task_heading, task_looks
from mtlcore.report.charts.series import series
from mtlcore.report.markup import Markup, element, joined
from mtlcore.storage import Record, written_whole

_COLUMNS = 3
_GAP, _TITLE, _HEADING, _LEGEND_LINE = 24.0, 20.0, 30.0, 15.0
_SAMPLE = 24.0  # length of the piece of a line in a legend
_FONT = 'font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif'


def save_curves(
    path: Path,
    records: Iterable[Record],
    *,
    units: Mapping[str, str] | None = None,
    higher_is_better: Mapping[str, Mapping[str, bool]] | None = None,
    constants: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> None:
    """Write the learning curves of a run: per task its losses and metrics.

    Nothing is written where there is nothing to draw.

    Args:
        path: The SVG file.
        records: Lines of metrics.jsonl. A value that is not finite leaves a gap.
        units: Task -> unit of its labels, where it has one.
        higher_is_better: Task -> metric -> whether higher is better.
        constants: "global" or "pixel" -> task -> metric -> value of the best constants.

    Raises:
        OSError: The file cannot be written. An earlier one is left as it was.
    """
    curves = series(records)
    tasks = dict.fromkeys(
        task for split, task, metric in curves if task and (split != "train" or metric == "loss")
    )
    charts = {
        task_heading(task, units or {}): learning_charts(
            curves, task, higher_is_better=higher_is_better or {}, constants=constants or {}
        )
        for task in tasks
    }
    _save(path, "Learning curves", charts)


def save_weights(path: Path, records: Iterable[Record]) -> None:
    """Write the weights of tasks and classes, and the cosines between tasks' gradients.

    Nothing is written where there is neither.

    Args:
        path: The SVG file.
        records: Lines of metrics.jsonl. The metrics "weight", "weight/<class>", "degenerate" and
            "cosine", of a task "a|b", count.

    Raises:
        OSError: The file cannot be written. An earlier one is left as it was.
    """
    _save(path, "Balancing", {"": step_charts(task_looks(series(records)), balancing=True)})


def _save(path: Path, title: str, groups: Mapping[str, Sequence[Chart]]) -> None:
    shown = {
        heading: drawable
        for heading, charts in groups.items()
        if (drawable := [chart for chart in charts if chart.has_values])
    }
    if not shown:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(_sheet(title, shown) + "\n", "utf-8")


def _sheet(title: str, groups: Mapping[str, Sequence[Chart]]) -> Markup:
    """Return charts in rows, those of a group together under its heading."""
    columns = min(_COLUMNS, max(map(len, groups.values())))
    width = columns * (WIDTH + _GAP) + _GAP
    parts, top = [], _GAP
    for heading, charts in groups.items():
        if heading:
            y = top + _HEADING / 2
            parts.append(element("text", heading, x=_GAP, y=y, class_="heading"))
            top += _HEADING
        panels = [_Panel.of(chart) for chart in charts]
        for first in range(0, len(panels), columns):
            row = panels[first : first + columns]
            for column, panel in enumerate(row):
                place = f"translate({_GAP + column * (WIDTH + _GAP):g} {top:g})"
                parts.append(element("g", panel.content, transform=place))
            top += max(panel.height for panel in row) + _GAP
    return element(
        "svg",
        element("title", title),
        element("style", Markup(sheet_style())),
        element("rect", width="100%", height="100%", class_="paper"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {top:g}",
        width=f"{width:g}",
        height=f"{top:g}",
    )


@final
@attrs.frozen
class _Panel:
    """A chart with its title, its legend and what it lacks."""

    content: Markup
    height: float

    @classmethod
    def of(cls, chart: Chart) -> _Panel:
        drawing = draw(chart)
        title = element(
            "text",
            chart.title,
            element("tspan", drawing.scale, class_="tick"),
            y=_TITLE / 2,
            class_="title",
        )
        picture = element(
            "g",
            drawing.content,
            transform=f"translate(0 {_TITLE:g})",
            role="img",
            aria_label=drawing.description,
        )
        parts, top = [title, picture], _TITLE + HEIGHT
        for entries in _legend_rows(drawing.legend):
            top += _LEGEND_LINE
            for left, line in entries:
                end = left + _SAMPLE
                parts += [
                    element("line", x1=left, x2=end, y1=top - 4, y2=top - 4,
                            class_=f"line {line.look_classes}"),
                    element("text", line.label, x=end + 5, y=top, class_="name"),
                ]  # fmt: skip
        if drawing.missing:
            top += _LEGEND_LINE
            text = f"Never finite: {', '.join(drawing.missing)}."
            parts.append(element("text", text, y=top, class_="tick"))
        return cls(joined(parts), top)


def _legend_rows(lines: Sequence[Line]) -> Iterator[list[tuple[float, Line]]]:
    """Yield rows of lines, each with its left edge, no row wider than a chart."""
    left, row = 0.0, list[tuple[float, Line]]()
    for line in lines:
        needed = _SAMPLE + 5 + LETTER * len(line.label) + 14
        if row and left + needed > WIDTH:
            yield row
            left, row = 0.0, []
        row.append((left, line))
        left += needed
    if row:
        yield row


def chart_style() -> str:
    """Return the style sheet of charts, with the variables of both themes."""
    return resources.files("mtlcore.report.charts").joinpath("charts.css").read_text("utf-8")


def sheet_style() -> str:
    """Return the style of a file: colours instead of variables, which not every viewer knows."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w+);", block))
        for block in re.findall(r":root \{(.*?)\}", chart_style(), re.DOTALL)
    )
    rules = chart_style().partition("/* Rules */")[2].strip()
    own = (
        f"text {{ {_FONT}; }}\n.paper {{ fill: var(--paper); }}\n"
        ".title { font-size: 13px; font-weight: 500; }\n"
        ".heading { font-size: 15px; font-weight: 700; }"
    )

    def coloured(theme: Mapping[str, str]) -> str:
        return re.sub(r"var\(--([\w-]+)\)", lambda name: theme[name[1]], f"{rules}\n{own}")

    return f"\n{coloured(light)}\n@media (prefers-color-scheme: dark) {{\n{coloured(dark)}\n}}\n"
