"""The lines of a chart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import final

import attrs

Point = tuple[float, float]

#: The style sheet has so many colours; further lines have them again in other strokes.
COLOURS = 8


@final
@attrs.frozen(kw_only=True)
class Line:
    """A curve.

    Args:
        label: Its name.
        look: Number of its colour and stroke; one thing has one look all over a page.
        points: x and y in order; a y that is not finite leaves a gap.
        band: Lowest and highest y around each point, NaN where there is none; or empty.
    """

    label: str
    look: int
    points: tuple[Point, ...]
    band: tuple[Point, ...] = ()

    @property
    def finite(self) -> list[Point]:
        """The points without the gaps."""
        return [point for point in self.points if math.isfinite(point[1])]

    @property
    def look_classes(self) -> str:
        """The classes of its colour and stroke in the style sheet."""
        return f"c{self.look % COLOURS} s{self.look // COLOURS % 3}"

    @property
    def pieces(self) -> list[list[int]]:
        """The indices of the points between gaps."""
        pieces: list[list[int]] = [[]]
        for index, (_, y) in enumerate(self.points):
            if math.isfinite(y):
                pieces[-1].append(index)
            elif pieces[-1]:
                pieces.append([])
        return [piece for piece in pieces if piece]

    def smoothed(self) -> Line:
        """Return the running mean over a twentieth of the points; few points stay as they are."""
        half = len(self.points) // 40
        if half < 1:
            return self
        xs = [x for x, _ in self.points]
        lows, highs = zip(*self.band, strict=True) if self.band else ((), ())
        return attrs.evolve(
            self,
            points=tuple(zip(xs, _running_mean([y for _, y in self.points], half), strict=True)),
            band=tuple(zip(_running_mean(lows, half), _running_mean(highs, half), strict=True)),
        )


def over_seeds(label: str, look: int, seeds: Sequence[Sequence[Point]]) -> Line:
    """Return the mean of several runs' curves in a band of one standard deviation (n - 1).

    Only points that every run has count. Where a run's value is NaN there is a gap. A single run
    has no band.
    """
    tables = [dict(points) for points in seeds]
    common = [x for x in tables[0] if all(x in table for table in tables)]
    values = {x: [table[x] for table in tables] for x in sorted(common)}
    return Line(
        label=label,
        look=look,
        points=tuple((x, statistics.fmean(ys)) for x, ys in values.items()),
        band=tuple(map(_band, values.values())) if len(tables) > 1 else (),
    )


def _band(values: Sequence[float]) -> Point:
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return mean - deviation, mean + deviation


def _running_mean(values: Sequence[float], half: int) -> list[float]:
    """Return the mean of the finite values around each one; a gap stays a gap."""
    means = []
    for index, value in enumerate(values):
        window = [v for v in values[max(0, index - half) : index + half + 1] if math.isfinite(v)]
        means.append(sum(window) / len(window) if math.isfinite(value) else math.nan)
    return means
