"""The picture of a search: what its trials reached in two objectives, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import final

import attrs

from mtlcore.report.charts.axes import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, number_text, ticks
from mtlcore.report.charts.drawing import Chart
from mtlcore.report.charts.files import sheet_style
from mtlcore.report.charts.lines import Line
from mtlcore.report.charts.run_charts import arrow_of
from mtlcore.report.markup import Markup, element, joined
from mtlcore.results import SearchResult, TrialResult
from mtlcore.storage import written_whole

_RIGHT = 12.0  # room for half of the last label
_GAP, _TITLE = 24.0, 24.0


@final
@attrs.frozen(kw_only=True)
class Plane:
    """Two objectives against each other, as SVG.

    Args:
        title: What is shown.
        content: The elements, for a `<svg>` with the view box 0 0 WIDTH HEIGHT.
        description: The picture in words.
    """

    title: str
    content: Markup
    description: str


def planes(result: SearchResult) -> list[Plane]:
    """Return a plane for each pair of objectives; none where there is one objective only."""
    return [
        _plane(result, first, second)
        for first, second in combinations(range(len(result.objectives)), 2)
    ]


def best_so_far(result: SearchResult) -> Chart | None:
    """Return how the only objective got better, trial by trial; None where there are several."""
    if len(result.objectives) > 1:
        return None
    (name,), (higher,) = result.objectives, result.higher_is_better
    values = [(number, trial.values[0]) for number, trial in enumerate(result.trials)]
    best, line = math.nan, []
    for number, value in values:
        if math.isfinite(value):
            better = max if higher else min
            best = value if math.isnan(best) else better(best, value)
        line.append((number, best))
    return Chart(
        title=f"{name}{arrow_of(higher)}",
        lines=[
            Line(label="trial", look=0, points=tuple(values)),
            Line(label="best so far", look=1, points=tuple(line)),
        ],
        x_label="trial",
    )


def save_front(path: Path, result: SearchResult) -> bool:
    """Write the planes as one SVG file; return whether there are any with two trials or more.

    Raises:
        OSError: The file cannot be written.
    """
    shown = planes(result) if sum(trial.has_values for trial in result.trials) > 1 else []
    if not shown:
        return False
    width = len(shown) * (WIDTH + _GAP) + _GAP
    height = HEIGHT + _TITLE + 2 * _GAP
    parts = [
        element(
            "g",
            element("text", plane.title, y=_TITLE / 2, class_="title"),
            element("g", plane.content, transform=f"translate(0 {_TITLE:g})"),
            transform=f"translate({_GAP + number * (WIDTH + _GAP):g} {_GAP:g})",
        )
        for number, plane in enumerate(shown)
    ]
    svg = element(
        "svg",
        element("title", "Pareto front"),
        element("style", Markup(sheet_style())),
        element("rect", width="100%", height="100%", class_="paper"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
    )
    with written_whole(path) as partial:
        partial.write_text(f"{svg}\n", "utf-8")
    return True


def _plane(result: SearchResult, first: int, second: int) -> Plane:
    trials = [trial for trial in result.trials if trial.has_values]
    names = [
        f"{result.objectives[number]}{arrow_of(result.higher_is_better[number])}"
        for number in (first, second)
    ]
    title = f"{names[1]} over {names[0]}"
    if not trials:
        return Plane(title=title, content=Markup(), description=f"{title}: no trial has a result")
    scales = _Scales.around([(t.values[first], t.values[second]) for t in trials])
    front = sorted(result.front, key=lambda trial: trial.values[first])
    points = [(trial.values[first], trial.values[second]) for trial in front]
    # Between two trials of the front nothing is known to be reached: the line goes by the worse of
    # both. With more than two objectives a front has no line in a plane.
    steps = [points[0]] if len(result.objectives) == 2 else []
    for before, after in pairwise(points) if steps else ():
        corner = _worse(before, after, result.higher_is_better)
        steps += [corner, after]
    path = "M" + "L".join(scales.place(point) for point in steps) if len(steps) > 1 else ""
    content = [
        scales.axes(names[0]),
        element("path", d=path, class_="line c1 s0") if path else Markup(),
        *(_dot(scales, trial, first, second, trial in front) for trial in trials),
        *_labels(scales, front, first, second),
    ]
    told = "; ".join(
        f"{trial.name} with {number_text(x)} and {number_text(y)}"
        for trial, (x, y) in zip(front, points, strict=True)
    )
    return Plane(title=title, content=joined(content), description=f"{title}: the front is {told}")


def _worse(
    one: tuple[float, float], other: tuple[float, float], higher: tuple[bool, ...]
) -> tuple[float, float]:
    first, second = (min if up else max for up in higher[:2])
    return first(one[0], other[0]), second(one[1], other[1])


def _dot(scales: _Scales, trial: TrialResult, first: int, second: int, of_front: bool) -> Markup:
    x, y = scales.place((trial.values[first], trial.values[second])).split()
    hover = element("title", f"{trial.name}: {', '.join(_settings(trial))}")
    look = "dot c1" if of_front else "dot c0"
    return element("circle", hover, cx=x, cy=y, r=4 if of_front else 3, class_=look)


def _settings(trial: TrialResult) -> Iterator[str]:
    for path, value in trial.parameters.items():
        yield f"{path} = {number_text(value) if isinstance(value, float) else value}"


def _labels(scales: _Scales, front: list[TrialResult], first: int, second: int) -> Iterator[Markup]:
    """Yield the names of the front's trials, where they do not lie upon one another."""
    taken: list[tuple[float, float]] = []
    for trial in front:
        x, y = map(float, scales.place((trial.values[first], trial.values[second])).split())
        if any(abs(x - a) < 60 and abs(y - b) < 12 for a, b in taken):
            continue
        taken.append((x, y))
        right = x > WIDTH / 2
        look = "name end" if right else "name"
        yield element("text", trial.name, x=x + (-7 if right else 7), y=y - 6, class_=look)


@final
@attrs.frozen
class _Scales:
    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, points: list[tuple[float, float]]) -> _Scales:
        return cls(*(_padded([point[axis] for point in points]) for axis in (0, 1)))

    def place(self, point: tuple[float, float]) -> str:
        return f"{self._left_of(point[0]):.1f} {self._top_of(point[1]):.1f}"

    def axes(self, x_label: str) -> Markup:
        bottom, right = HEIGHT - BOTTOM, WIDTH - _RIGHT
        parts = []
        for value in ticks(*self.y, 5):
            y = f"{self._top_of(value):.1f}"
            parts.append(element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
            text = number_text(value)
            parts.append(element("text", text, x=LEFT - 5, y=y, dy="0.32em", class_="tick end"))
        for value in ticks(*self.x, 4):
            x = f"{self._left_of(value):.1f}"
            parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
            text = number_text(value)
            parts.append(element("text", text, x=x, y=bottom + 16, class_="tick middle"))
        parts.append(element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
        middle = (LEFT + right) / 2
        parts.append(element("text", x_label, x=middle, y=HEIGHT - 4, class_="tick middle"))
        return joined(parts)

    def _left_of(self, x: float) -> float:
        return LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - _RIGHT - LEFT)

    def _top_of(self, y: float) -> float:
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _padded(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad
