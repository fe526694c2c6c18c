"""Charts on a page: SVG inside a figure with its caption and legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mtlcore.report.charts.axes import HEIGHT, WIDTH
from mtlcore.report.charts.drawing import Chart, draw
from mtlcore.report.charts.front import Plane
from mtlcore.report.charts.lines import Line
from mtlcore.report.markup import Markup, element


def figure(chart: Chart) -> Markup:
    """Return a chart, each line labelled at its end; without a finite value it says so."""
    if not chart.has_values:
        note = element("p", "Nothing finite was recorded.", class_="note")
        return element("figure", element("figcaption", chart.title), note, class_="chart")
    drawing = draw(chart)
    parts = [
        element("figcaption", chart.title, element("span", drawing.scale, class_="unit")),
        element(
            "svg",
            drawing.content,
            viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
            role="img",
            aria_label=drawing.description,
        ),
    ]
    if drawing.legend:
        parts.append(legend(drawing.legend))
    if drawing.missing:
        parts.append(element("p", f"Never finite: {', '.join(drawing.missing)}.", class_="note"))
    return element("figure", *parts, class_="chart")


def figures(charts: Sequence[Chart]) -> Markup:
    """Return charts beside each other where there is room; empty without charts."""
    return element("div", *map(figure, charts), class_="charts") if charts else Markup()


def plane_figures(planes: Sequence[Plane]) -> Markup:
    """Return planes of objectives beside each other; empty without planes."""
    drawn = [
        element(
            "figure",
            element("figcaption", plane.title),
            element(
                "svg",
                plane.content,
                viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
                role="img",
                aria_label=plane.description,
            ),
            class_="chart",
        )
        for plane in planes
    ]
    return element("div", *drawn, class_="charts") if drawn else Markup()


def legend(lines: Iterable[Line]) -> Markup:
    """Return the names of lines, each beside a piece of it."""
    return element(
        "ul",
        *(
            element(
                "li",
                element(
                    "svg",
                    element("line", x1=0, y1=5, x2=24, y2=5, class_=f"line {line.look_classes}"),
                    viewBox="0 0 24 10",
                    aria_hidden="true",
                ),
                line.label,
            )
            for line in lines
        ),
        class_="legend",
    )
