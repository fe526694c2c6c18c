"""The labels at the ends of a chart's lines and levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import attrs

from mtlcore.report.charts.axes import BOTTOM, HEIGHT, TOP, Axes
from mtlcore.report.charts.lines import Line
from mtlcore.report.markup import Markup, element, joined

LETTER = 6.2  # width of a letter, on average
_LINE = 13.0  # height of a line
_LONGEST = 14  # letters of a label beside its line; the legend has it whole
_LEADER = 10.0


@final
@attrs.frozen(kw_only=True)
class Labels:
    """The labels of a chart.

    Args:
        margin: The room that they need.
        texts: Name -> its label; empty where nothing is labelled.
        need_legend: Not every line has its whole name beside it.
    """

    margin: float
    texts: Mapping[str, str]
    need_legend: bool

    @classmethod
    def of(cls, lines: Sequence[str], levels: Sequence[str]) -> Labels:
        """Return the labels of lines and levels with these names."""
        names = [*lines, *levels]
        texts = {n: n if len(n) <= _LONGEST else n[: _LONGEST - 1] + "…" for n in names}
        # A single line needs no label; too many have no room, or cannot be told apart.
        distinct = len(set(texts.values())) == len(names)
        if len(names) == 1 or not distinct or len(names) * _LINE > HEIGHT - BOTTOM:
            return cls(margin=12.0, texts={}, need_legend=len(lines) > 1)
        return cls(
            margin=_LEADER + 4 + LETTER * max(map(len, texts.values())),
            texts=texts,
            need_legend=len(lines) > 1 and any(texts[name] != name for name in lines),
        )

    def drawn(self, axes: Axes, lines: Sequence[Line], levels: Mapping[str, float]) -> Markup:
        """Return the labels at the right of the axes, each led to by a stroke."""
        ends = []  # place from the top and from the left, name, classes
        for line in lines:
            x, y = line.finite[-1]
            look = f"leader {line.look_classes}"
            ends.append((axes.top_of(y), axes.left_of(x), line.label, look))
        for name, value in levels.items():
            ends.append((axes.top_of(value), axes.right, name, "leader level"))
        ends = sorted(end for end in ends if end[2] in self.texts)
        places = _spread_out([top for top, *_ in ends])
        parts = []
        for (top, left, name, look), place in zip(ends, places, strict=True):
            x = axes.right + _LEADER
            points = f"{left:.1f},{top:.1f} {axes.right:.1f},{top:.1f} {x - 2:.1f},{place:.1f}"
            text = self.texts[name]
            parts.append(element("polyline", points=points, class_=look))
            parts.append(element("text", text, x=x, y=f"{place:.1f}", dy="0.32em", class_="name"))
        return joined(parts)


def _spread_out(tops: Sequence[float]) -> list[float]:
    """Return places for labels: in the same order, near theirs, not overlapping, all inside."""
    lowest = HEIGHT - BOTTOM - _LINE / 2
    places: list[float] = []
    for top in tops:
        places.append(max(top, places[-1] + _LINE if places else TOP))
    for index in range(len(places) - 1, -1, -1):
        below = places[index + 1] - _LINE if index + 1 < len(places) else lowest
        places[index] = min(places[index], below)
    return places
