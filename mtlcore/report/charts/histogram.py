"""Histograms as SVG, on the axes of the other charts."""

from __future__ import annotations

from collections.abc import Sequence

from mtlcore.report.charts.axes import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, number_text, ticks
from mtlcore.report.markup import Markup, element

_RIGHT = WIDTH - 12


def histogram(
    title: str, unit: str, edges: Sequence[float], counts: Sequence[int], look: int
) -> Markup:
    """Return a figure of how often values occur.

    Args:
        title: what they are.
        unit: of the values; empty where they have none.
        edges: of the bins, rising, one more than there are bins.
        counts: how many values each bin holds; one of them is above 0.
        look: number of the colour.
    """
    low, high, most = edges[0], edges[-1], max(counts)
    bottom = HEIGHT - BOTTOM
    wide, tall = _RIGHT - LEFT, bottom - TOP
    bars = [
        element(
            "rect",
            element("title", f"{number_text(start)} to {number_text(end)}: {number:,}"),
            x=f"{LEFT + (start - low) / (high - low) * wide:.2f}",
            y=f"{bottom - number / most * tall:.2f}",
            width=f"{max(0.5, (end - start) / (high - low) * wide - 0.5):.2f}",
            height=f"{number / most * tall:.2f}",
            class_=f"dot c{look}",
        )
        for start, end, number in zip(edges[:-1], edges[1:], counts, strict=True)
        if number
    ]
    parts = [element("line", x1=LEFT, x2=_RIGHT, y1=bottom, y2=bottom, class_="axis")]
    for value in ticks(low, high, 5):
        x = f"{LEFT + (value - low) / (high - low) * wide:.1f}"
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        parts.append(element("text", number_text(value), x=x, y=bottom + 16, class_="tick middle"))
    for value in ticks(0, most, 4):
        y = f"{bottom - value / most * tall:.1f}"
        parts.append(element("line", x1=LEFT, x2=_RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(
            element("text", number_text(value), x=LEFT - 5, y=y, dy="0.32em", class_="tick end")
        )
    if unit:
        parts.append(element("text", unit, x=(LEFT + _RIGHT) / 2, y=HEIGHT - 4,
                             class_="tick middle"))  # fmt: skip
    described = f"{title}: {sum(counts):,} values from {number_text(low)} to {number_text(high)}"
    return element(
        "figure",
        element("figcaption", title),
        element(
            "svg", *parts, *bars, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img",
            aria_label=described,
        ),
        class_="chart",
    )  # fmt: skip
