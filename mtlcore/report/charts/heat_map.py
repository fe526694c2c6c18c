"""A table of numbers between tasks as a picture of coloured cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mtlcore.report.charts.axes import number_text
from mtlcore.report.charts.files import sheet_style
from mtlcore.report.markup import Markup, element

_CELL_WIDTH, _CELL_HEIGHT, _GAP = 86.0, 34.0, 24.0
_LETTER = 6.6  # width of a letter of a task's name


def heat_map(title: str, tasks: Sequence[str], values: Mapping[tuple[str, str], float]) -> Markup:
    """Return an SVG file of a K x K table; rows are sources, columns are targets.

    Blue is above zero and orange below, the stronger the farther; the strongest is the number
    farthest from zero.

    Args:
        title: Its heading.
        tasks: The names of rows and columns.
        values: (row, column) -> number; one that is missing or not finite leaves its cell empty.
    """
    left = _GAP + max(70.0, _LETTER * max(map(len, tasks))) + 8
    top = _GAP + 34
    farthest = max((abs(v) for v in values.values() if math.isfinite(v)), default=0.0)
    parts = [element("text", title, x=_GAP, y=_GAP, class_="title")]
    for number, task in enumerate(tasks):
        x, y = left + (number + 0.5) * _CELL_WIDTH, top + (number + 0.5) * _CELL_HEIGHT
        parts.append(element("text", _cut(task), x=x, y=top - 8, class_="middle"))
        parts.append(element("text", task, x=left - 8, y=y + 4, class_="end"))
    for row, source in enumerate(tasks):
        for column, target in enumerate(tasks):
            value = values.get((source, target), math.nan)
            x, y = left + column * _CELL_WIDTH, top + row * _CELL_HEIGHT
            parts.append(_cell(x, y, value, farthest, f"{source} to {target}"))
    width = max(left + len(tasks) * _CELL_WIDTH, _GAP + _LETTER * len(title)) + _GAP
    height = top + len(tasks) * _CELL_HEIGHT + _GAP
    return element(
        "svg",
        element("title", title),
        element("style", Markup(sheet_style())),
        element("rect", width="100%", height="100%", class_="paper"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
    )


def _cell(x: float, y: float, value: float, farthest: float, of: str) -> Markup:
    if not math.isfinite(value):
        return element("rect", x=x + 1, y=y + 1, width=_CELL_WIDTH - 2, height=_CELL_HEIGHT - 2,
                       class_="nothing")  # fmt: skip
    strength = abs(value) / farthest if farthest else 0.0
    return element(
        "g",
        element("title", f"{of}: {number_text(value)}"),
        element(
            "rect",
            x=x + 1,
            y=y + 1,
            width=_CELL_WIDTH - 2,
            height=_CELL_HEIGHT - 2,
            class_="cell c0" if value >= 0 else "cell c1",
            fill_opacity=f"{0.06 + 0.5 * strength:.3f}",
        ),
        element("text", number_text(float(f"{value:.3g}")), x=x + _CELL_WIDTH / 2,
                y=y + _CELL_HEIGHT / 2 + 4, class_="middle"),
    )  # fmt: skip


def _cut(name: str) -> str:
    longest = int(_CELL_WIDTH / _LETTER)
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
