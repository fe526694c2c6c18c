"""The axes of a chart: from values to places in the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import attrs

from mtlcore.report.charts.lines import Line, Point
from mtlcore.report.markup import Markup, element, joined

# A chart is about as wide as a phone, so that its letters are as large as those around it.
WIDTH, HEIGHT = 360.0, 220.0
LEFT, TOP, BOTTOM = 46.0, 8.0, 34.0
_DECADES = 1.5  # positive values that span more than that have a logarithmic scale


@final
@attrs.frozen(kw_only=True)
class Axes:
    """The scales of a chart.

    Args:
        x: Ends of the x axis.
        y: Ends of the y axis, of logarithms where `logarithmic`.
        logarithmic: Whether the y axis has a logarithmic scale.
        right: Where the area of the curves ends.
    """

    x: Point
    y: Point
    logarithmic: bool
    right: float

    @classmethod
    def around(
        cls,
        lines: Sequence[Line],
        levels: Mapping[str, float],
        margin: float,
        may_be_logarithmic: bool,
    ) -> Axes:
        """Return axes that hold lines with their bands, and levels.

        Args:
            lines: The lines.
            levels: Values that are drawn across.
            margin: Room for labels at the right.
            may_be_logarithmic: Use a logarithmic scale for positive values of many decades.
        """
        central = [y for line in lines for _, y in line.finite] + list(levels.values())
        edges = [y for line in lines for pair in line.band for y in pair if math.isfinite(y)]
        logarithmic = (
            may_be_logarithmic
            and min(central) > 0
            and math.log10(max(central) / min(central)) > _DECADES
        )
        if logarithmic:
            # A band may reach below zero, where there is no logarithm.
            lowest = min(central) / 2
            y = _padded([math.log10(max(value, lowest)) for value in central + edges])
        else:
            y = _padded(central + edges)
        xs = [x for line in lines for x, _ in line.points]
        x = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, min(xs) + 0.5)
        return cls(x=x, y=y, logarithmic=logarithmic, right=WIDTH - margin)

    def left_of(self, x: float) -> float:
        """Return the place of an x, from the left."""
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return LEFT + share * (self.right - LEFT)

    def top_of(self, y: float) -> float:
        """Return the place of a y, from the top."""
        low, high = self.y
        value = math.log10(max(y, 10.0**low)) if self.logarithmic else y
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    def place(self, point: Point) -> str:
        """Return a point as paths write it."""
        return f"{self.left_of(point[0]):.1f} {self.top_of(point[1]):.1f}"

    def drawn(self, x_label: str) -> Markup:
        """Return the axes with their ticks and the label of x."""
        bottom = HEIGHT - BOTTOM
        parts = []
        for value in self._y_ticks():
            y = f"{self.top_of(value):.1f}"
            parts.append(element("line", x1=LEFT, x2=self.right, y1=y, y2=y, class_="grid"))
            text = number_text(value)
            parts.append(element("text", text, x=LEFT - 5, y=y, dy="0.32em", class_="tick end"))
        for value in self._x_ticks():
            x = f"{self.left_of(value):.1f}"
            parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
            text = number_text(value)
            parts.append(element("text", text, x=x, y=bottom + 16, class_="tick middle"))
        parts.append(element("line", x1=LEFT, x2=self.right, y1=bottom, y2=bottom, class_="axis"))
        middle = (LEFT + self.right) / 2
        parts.append(element("text", x_label, x=middle, y=HEIGHT - 4, class_="tick middle"))
        return joined(parts)

    def _x_ticks(self) -> list[float]:
        whole = [x for x in ticks(*self.x, 5) if x == round(x)]
        return whole or [round(self.x[0])]

    def _y_ticks(self) -> list[float]:
        low, high = self.y
        if not self.logarithmic:
            return ticks(low, high, 5)
        decades = range(math.floor(low), math.ceil(high) + 1)
        factors = (1, 2, 5) if high - low < 2.5 else (1,)
        every = max(1, math.ceil((high - low) / 6))
        values = [f * 10.0**d for d in decades if d % every == 0 for f in factors]
        return [value for value in values if low <= math.log10(value) <= high]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def number_text(value: float) -> str:
    """Return a number as axes and descriptions show it."""
    text = f"{value:.4g}"
    if "e" in text:
        mantissa, _, exponent = text.partition("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


def _padded(values: Sequence[float]) -> Point:
    low, high = min(values), max(values)
    extent = high - low
    # Values that differ by rounding only must not look as if they moved.
    pad = 0.06 * extent if extent > 1e-9 * max(abs(low), abs(high)) else 0.1 * abs(high) or 1.0
    return low - pad, high + pad
