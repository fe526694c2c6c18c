"""Line charts as inline SVG: crisp, coloured by the page's style sheet, without a script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import final

import attrs

from mtlcore.report.html.markup import Markup, element, joined

Point = tuple[float, float]

#: The style sheet has so many colours; further lines have them again in other strokes.
COLOURS = 8

# A chart is about as wide as a phone, so that its letters are as large as those around it.
_WIDTH, _HEIGHT = 360.0, 220.0
_LEFT, _TOP, _BOTTOM = 46.0, 8.0, 34.0
_LETTER, _LINE = 6.2, 13.0  # width of a letter, on average, and height of a line
_LONGEST = 14  # letters of a label beside its line; the legend has it whole
_LEADER = 10.0
_FEW = 30  # so many points are marked, of which one alone can be seen
_DECADES = 1.5  # positive values that span more than that have a logarithmic scale


@final
@attrs.frozen(kw_only=True)
class Line:
    """A curve.

    Args:
        label: its name.
        look: number of its colour and stroke; the same thing has the same one all over a page.
        points: x and y in order; a y that is not finite leaves a gap.
        band: lowest and highest y around each point, NaN where there is none; or empty.
    """

    label: str
    look: int
    points: tuple[Point, ...]
    band: tuple[Point, ...] = ()

    @property
    def finite(self) -> list[Point]:
        """The points without the gaps."""
        return [point for point in self.points if math.isfinite(point[1])]


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "step",
    levels: Mapping[str, float] | None = None,
    calm: bool = False,
    may_be_logarithmic: bool = False,
) -> Markup:
    """A figure with axes, each line labelled at its end; without a finite value it says so.

    Args:
        title: what the lines show.
        lines: in order.
        x_label: of the axis.
        levels: name -> value to compare with, drawn across.
        calm: draw a running mean, over the values themselves where they are of one run.
        may_be_logarithmic: the scale is, where values are positive and span more than one and a
            half decades.
    """
    raw = [line for line in lines if line.finite]
    shown = [_calmed(line) for line in raw] if calm else raw
    known = {name: value for name, value in (levels or {}).items() if math.isfinite(value)}
    missing = [line.label for line in lines if not line.finite]
    if not shown:
        note = element("p", "Nothing finite was recorded.", class_="note")
        return element("figure", element("figcaption", title), note, class_="chart")
    labels = _Labels.of([line.label for line in shown], [name for name in known if name])
    axes = _Axes.around([*raw, *shown], known, labels.margin, may_be_logarithmic)
    scale = " (log scale)" if axes.logarithmic else ""
    picture = element(
        "svg",
        _frame(axes, x_label),
        *(_level(axes, value) for value in known.values()),
        *(_band(axes, line) for line in shown),
        *(
            _curve(axes, before, "faint")
            for before, line in zip(raw, shown, strict=True)
            if line is not before and not line.band
        ),
        *(_curve(axes, line) for line in shown),
        _drawn(labels, axes, shown, known),
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        role="img",
        aria_label=_described(title + scale, shown, known),
    )
    parts = [element("figcaption", title, element("span", scale, class_="unit")), picture]
    if labels.need_legend:
        parts.append(legend((line.label, line.look) for line in shown))
    if missing:
        parts.append(element("p", f"Never finite: {', '.join(missing)}.", class_="note"))
    return element("figure", *parts, class_="chart")


def legend(entries: Iterable[tuple[str, int]]) -> Markup:
    """Names, each beside a piece of its line."""
    return element(
        "ul",
        *(
            element(
                "li",
                element(
                    "svg",
                    element("line", x1=0, y1=5, x2=24, y2=5, class_=f"line {_look(look)}"),
                    viewBox="0 0 24 10",
                    aria_hidden="true",
                ),
                name,
            )
            for name, look in entries
        ),
        class_="legend",
    )


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def number_text(value: float) -> str:
    """A number as axes and descriptions show it."""
    text = f"{value:.4g}"
    if "e" in text:
        mantissa, _, exponent = text.partition("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


# Axes


@final
@attrs.frozen(kw_only=True)
class _Axes:
    """From values to places in the picture."""

    x: Point
    y: Point  # of the logarithms, where that is the scale
    logarithmic: bool
    right: float  # where the curves' area ends

    @classmethod
    def around(
        cls,
        lines: Sequence[Line],
        levels: Mapping[str, float],
        margin: float,
        may_be_logarithmic: bool,
    ) -> _Axes:
        central = [y for line in lines for _, y in line.finite] + list(levels.values())
        edges = [y for line in lines for pair in line.band for y in pair if math.isfinite(y)]
        logarithmic = (
            may_be_logarithmic
            and min(central) > 0
            and math.log10(max(central) / min(central)) > _DECADES
        )
        if logarithmic:
            # A band may reach below zero, where a logarithm does not.
            lowest = min(central) / 2
            y = _padded([math.log10(max(value, lowest)) for value in central + edges])
        else:
            y = _padded(central + edges)
        xs = [x for line in lines for x, _ in line.points]
        x = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, min(xs) + 0.5)
        return cls(x=x, y=y, logarithmic=logarithmic, right=_WIDTH - margin)

    def left_of(self, x: float) -> float:
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return _LEFT + share * (self.right - _LEFT)

    def top_of(self, y: float) -> float:
        low, high = self.y
        value = math.log10(max(y, 10.0**low)) if self.logarithmic else y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    def place(self, point: Point) -> str:
        return f"{self.left_of(point[0]):.1f} {self.top_of(point[1]):.1f}"

    def x_ticks(self) -> list[float]:
        whole = [x for x in ticks(*self.x, 5) if x == round(x)]
        return whole or [round(self.x[0])]

    def y_ticks(self) -> list[float]:
        low, high = self.y
        if not self.logarithmic:
            return ticks(low, high, 5)
        decades = range(math.floor(low), math.ceil(high) + 1)
        factors = (1, 2, 5) if high - low < 2.5 else (1,)
        every = max(1, math.ceil((high - low) / 6))
        found = [f * 10.0**d for d in decades if d % every == 0 for f in factors]
        return [value for value in found if low <= math.log10(value) <= high]


def _padded(values: Sequence[float]) -> Point:
    low, high = min(values), max(values)
    extent = high - low
    # Values that are equal but for rounding are not to look as if they moved.
    pad = 0.06 * extent if extent > 1e-9 * max(abs(low), abs(high)) else 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def _frame(axes: _Axes, x_label: str) -> Markup:
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for value in axes.y_ticks():
        y = f"{axes.top_of(value):.1f}"
        parts.append(element("line", x1=_LEFT, x2=axes.right, y1=y, y2=y, class_="grid"))
        text = number_text(value)
        parts.append(element("text", text, x=_LEFT - 5, y=y, dy="0.32em", class_="tick end"))
    for value in axes.x_ticks():
        x = f"{axes.left_of(value):.1f}"
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        text = number_text(value)
        parts.append(element("text", text, x=x, y=bottom + 16, class_="tick middle"))
    parts.append(element("line", x1=_LEFT, x2=axes.right, y1=bottom, y2=bottom, class_="axis"))
    middle = (_LEFT + axes.right) / 2
    parts.append(element("text", x_label, x=middle, y=_HEIGHT - 4, class_="tick middle"))
    return joined(parts)


# Lines


def _look(number: int) -> str:
    return f"c{number % COLOURS} s{number // COLOURS % 3}"


def _pieces(line: Line) -> list[list[int]]:
    """The numbers of the points between gaps."""
    pieces: list[list[int]] = [[]]
    for number, (_, y) in enumerate(line.points):
        if math.isfinite(y):
            pieces[-1].append(number)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _calmed(line: Line) -> Line:
    """The running mean over a twentieth of the points; of few points the line as it is."""
    half = len(line.points) // 40
    if half < 1:
        return line
    xs = [x for x, _ in line.points]
    lows, highs = zip(*line.band, strict=True) if line.band else ((), ())
    return attrs.evolve(
        line,
        points=tuple(zip(xs, _running([y for _, y in line.points], half), strict=True)),
        band=tuple(zip(_running(lows, half), _running(highs, half), strict=True)),
    )


def _running(values: Sequence[float], half: int) -> list[float]:
    """Means of the finite values around each one; a gap stays a gap."""
    means = []
    for number, value in enumerate(values):
        around = [v for v in values[max(0, number - half) : number + half + 1] if math.isfinite(v)]
        means.append(sum(around) / len(around) if math.isfinite(value) else math.nan)
    return means


def _curve(axes: _Axes, line: Line, more: str = "") -> Markup:
    look = f"{_look(line.look)} {more}".rstrip()
    places = [[axes.place(line.points[number]) for number in piece] for piece in _pieces(line)]
    path = "".join("M" + "L".join(piece) for piece in places if len(piece) > 1)
    parts = [element("path", d=path, class_=f"line {look}")] if path else []
    for piece in places:
        if len(line.points) <= _FEW or len(piece) == 1:
            for x, y in map(str.split, piece):
                parts.append(element("circle", cx=x, cy=y, r=2.2, class_=f"dot {look}"))
    return joined(parts)


def _band(axes: _Axes, line: Line) -> Markup:
    if not line.band:
        return Markup()
    known = [n for n, pair in enumerate(line.band) if all(map(math.isfinite, pair))]
    pieces = [[n for n in piece if n in known] for piece in _pieces(line)]
    paths = []
    for piece in pieces:
        there = [axes.place((line.points[n][0], line.band[n][1])) for n in piece]
        back = [axes.place((line.points[n][0], line.band[n][0])) for n in reversed(piece)]
        if len(piece) > 1:
            paths.append("M" + "L".join(there + back) + "Z")
    return element("path", d="".join(paths), class_=f"band {_look(line.look)}")


def _level(axes: _Axes, value: float) -> Markup:
    y = f"{axes.top_of(value):.1f}"
    return element("line", x1=_LEFT, x2=axes.right, y1=y, y2=y, class_="level")


# Labels


@final
@attrs.frozen(kw_only=True)
class _Labels:
    """What stands at the ends of lines and levels.

    Args:
        margin: the room that they need.
        texts: name -> its label; empty where nothing is labelled.
        need_legend: not every line has its whole name beside it.
    """

    margin: float
    texts: Mapping[str, str]
    need_legend: bool

    @classmethod
    def of(cls, lines: Sequence[str], levels: Sequence[str]) -> _Labels:
        names = [*lines, *levels]
        texts = {n: n if len(n) <= _LONGEST else n[: _LONGEST - 1] + "…" for n in names}
        # One line alone needs no label; too many have no room, or cannot be told apart.
        apart = len(set(texts.values())) == len(names)
        if len(names) == 1 or not apart or len(names) * _LINE > _HEIGHT - _BOTTOM:
            return cls(margin=12.0, texts={}, need_legend=len(lines) > 1)
        return cls(
            margin=_LEADER + 4 + _LETTER * max(map(len, texts.values())),
            texts=texts,
            need_legend=len(lines) > 1 and any(texts[name] != name for name in lines),
        )


def _drawn(
    labels: _Labels, axes: _Axes, lines: Sequence[Line], levels: Mapping[str, float]
) -> Markup:
    ends = [
        (axes.top_of(line.finite[-1][1]), axes.left_of(line.finite[-1][0]), line.label,
         f"leader {_look(line.look)}")
        for line in lines
    ]  # fmt: skip
    ends += [
        (axes.top_of(value), axes.right, name, "leader level") for name, value in levels.items()
    ]
    ends = sorted(end for end in ends if end[2] in labels.texts)
    parts = []
    for (top, left, name, look), place in zip(ends, _apart([end[0] for end in ends]), strict=True):
        x = axes.right + _LEADER
        points = f"{left:.1f},{top:.1f} {axes.right:.1f},{top:.1f} {x - 2:.1f},{place:.1f}"
        text = labels.texts[name]
        parts.append(element("polyline", points=points, class_=look))
        parts.append(element("text", text, x=x, y=f"{place:.1f}", dy="0.32em", class_="name"))
    return joined(parts)


def _apart(tops: Sequence[float]) -> list[float]:
    """Places for labels: in the same order, near theirs, no two on each other, all inside."""
    lowest = _HEIGHT - _BOTTOM - _LINE / 2
    places: list[float] = []
    for top in tops:
        places.append(max(top, places[-1] + _LINE if places else _TOP))
    for number in range(len(places) - 1, -1, -1):
        below = places[number + 1] - _LINE if number + 1 < len(places) else lowest
        places[number] = min(places[number], below)
    return places


def _described(title: str, lines: Sequence[Line], levels: Mapping[str, float]) -> str:
    """The chart in words."""
    parts = [
        f"{line.label} from {number_text(line.finite[0][1])} to {number_text(line.finite[-1][1])}"
        for line in lines
    ]
    parts += [f"{name} at {number_text(value)}" for name, value in levels.items()]
    return f"{title}: {'; '.join(parts)}"
