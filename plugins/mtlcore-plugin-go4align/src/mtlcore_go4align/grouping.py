"""Groups of numbers: k-means in one dimension, solved exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence


def group_means(values: Sequence[float], groups: int) -> list[float]:
    """Return for each number the mean of its group.

    The groups are those with the least sum of squared distances from their means. In one dimension
    they are intervals of the sorted numbers, and a dynamic programme over where the last interval
    begins finds the best ones in O(K^2 groups). Of equally good divisions it takes the one whose
    last group begins first.

    Args:
        values: K finite numbers.
        groups: how many groups to make; no more than there are numbers.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    ordered = [values[place] for place in order]
    spans = _spans(ordered)
    # Of the numbers before each place: the least sum, with one group more in each round, and where
    # the last group of that division begins.
    least = [0.0, *([math.inf] * len(ordered))]
    begins: list[list[int]] = []
    for _ in range(min(groups, len(ordered))):
        rows = [
            min((least[start] + spans[start][end - 1][0], start) for start in range(end))
            for end in range(1, len(ordered) + 1)
        ]
        least = [math.inf, *(cost for cost, _ in rows)]
        begins.append([start for _, start in rows])
    means, end = list[float](ordered), len(ordered)
    for starts in reversed(begins):
        start = starts[end - 1]
        means[start:end] = [spans[start][end - 1][1]] * (end - start)
        end = start
    found = dict(zip(order, means, strict=True))
    return [found[place] for place in range(len(values))]


def _spans(values: Sequence[float]) -> list[list[tuple[float, float]]]:
    """Return for each start and end (inclusive) the sum of squares about the mean, and the mean."""
    table = []
    for start in range(len(values)):
        row, mean, squares = [(math.inf, math.nan)] * start, 0.0, 0.0
        for number, value in enumerate(values[start:], 1):
            # Welford's recurrence: differences of sums of squares would lose all digits.
            step = value - mean
            mean += step / number
            squares += step * (value - mean)
            row.append((squares, mean))
        table.append(row)
    return table
