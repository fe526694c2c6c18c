"""Line charts as SVG: crisp, coloured by a style sheet, without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import attrs

from mtlcore.report.charts.axes import LEFT, Axes, number_text
from mtlcore.report.charts.labels import Labels
from mtlcore.report.charts.lines import Line
from mtlcore.report.markup import Markup, element, joined

_FEW = 30  # so many points are marked; a single one could not be seen otherwise


@final
@attrs.frozen(kw_only=True)
class Chart:
    """What a chart shows.

    Args:
        title: What the lines show.
        lines: The lines, in order.
        x_label: Label of the x axis.
        levels: Name -> value to compare with, drawn across.
        smooth: Draw a running mean, over the values themselves where they are of one run.
        may_be_logarithmic: Use a logarithmic scale where values are positive and span more than
            one and a half decades.
    """

    title: str
    lines: Sequence[Line]
    x_label: str = "step"
    levels: Mapping[str, float] = attrs.field(factory=dict)
    smooth: bool = False
    may_be_logarithmic: bool = False

    @property
    def has_values(self) -> bool:
        """Whether a line has a finite value."""
        return any(line.finite for line in self.lines)


@final
@attrs.frozen(kw_only=True)
class Drawing:
    """A chart as SVG elements, for a `<svg>` with the view box 0 0 WIDTH HEIGHT.

    Args:
        content: The elements.
        scale: Note on the scale, behind the title; or empty.
        description: The chart in words.
        legend: Lines that have no whole label, each to be named beside a piece of it.
        missing: Names of the lines without a finite value.
    """

    content: Markup
    scale: str
    description: str
    legend: Sequence[Line]
    missing: Sequence[str]


def draw(chart: Chart) -> Drawing:
    """Draw a chart that has values."""
    raw = [line for line in chart.lines if line.finite]
    lines = [line.smoothed() for line in raw] if chart.smooth else raw
    levels = {name: value for name, value in chart.levels.items() if math.isfinite(value)}
    labels = Labels.of([line.label for line in lines], [name for name in levels if name])
    axes = Axes.around([*raw, *lines], levels, labels.margin, chart.may_be_logarithmic)
    scale = " (log scale)" if axes.logarithmic else ""
    content = [
        axes.drawn(chart.x_label),
        *(_level(axes, value) for value in levels.values()),
        *(_band(axes, line) for line in lines),
        *(
            _curve(axes, before, "faint")
            for before, line in zip(raw, lines, strict=True)
            if line is not before and not line.band
        ),
        *(_curve(axes, line) for line in lines),
        labels.drawn(axes, lines, levels),
    ]
    return Drawing(
        content=joined(content),
        scale=scale,
        description=_described(chart.title + scale, lines, levels),
        legend=lines if labels.need_legend else (),
        missing=[line.label for line in chart.lines if not line.finite],
    )


def _curve(axes: Axes, line: Line, modifier: str = "") -> Markup:
    look = f"{line.look_classes} {modifier}".rstrip()
    places = [[axes.place(line.points[index]) for index in piece] for piece in line.pieces]
    path = "".join("M" + "L".join(piece) for piece in places if len(piece) > 1)
    parts = [element("path", d=path, class_=f"line {look}")] if path else []
    for piece in places:
        if len(line.points) <= _FEW or len(piece) == 1:
            for x, y in map(str.split, piece):
                parts.append(element("circle", cx=x, cy=y, r=2.2, class_=f"dot {look}"))
    return joined(parts)


def _band(axes: Axes, line: Line) -> Markup:
    if not line.band:
        return Markup()
    paths = []
    for piece in line.pieces:
        known = [index for index in piece if all(map(math.isfinite, line.band[index]))]
        if len(known) > 1:
            upper = [axes.place((line.points[n][0], line.band[n][1])) for n in known]
            lower = [axes.place((line.points[n][0], line.band[n][0])) for n in reversed(known)]
            paths.append("M" + "L".join(upper + lower) + "Z")
    return element("path", d="".join(paths), class_=f"band {line.look_classes}")


def _level(axes: Axes, value: float) -> Markup:
    y = f"{axes.top_of(value):.1f}"
    return element("line", x1=LEFT, x2=axes.right, y1=y, y2=y, class_="level")


def _described(title: str, lines: Sequence[Line], levels: Mapping[str, float]) -> str:
    parts = [
        f"{line.label} from {number_text(line.finite[0][1])} to {number_text(line.finite[-1][1])}"
        for line in lines
    ]
    parts += [f"{name} at {number_text(value)}" for name, value in levels.items()]
    return f"{title}: {'; '.join(parts)}"
