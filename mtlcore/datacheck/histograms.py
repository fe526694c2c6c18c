"""Values counted as they come: extent, mean, deviation and a histogram, in bounded memory."""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

_BINS = 48  # a histogram has at most so many
_FINEST = 20  # bits: differences that are finer than that of the largest value share a bin


@final
class Values:
    """Number, extent, mean, deviation and histogram of numbers.

    Bins are as wide as a power of two and begin at its multiples. When the numbers need more than
    there may be, each two become one: so the histogram is exact, and the same in whatever order the
    numbers came.

    Attributes:
        count: how many numbers.
        low: the least; infinity where there is none.
        high: the greatest.
        mean: their mean.
    """

    def __init__(self) -> None:
        self.count = 0
        self.low, self.high = math.inf, -math.inf
        self.mean, self._squares = 0.0, 0.0
        self._exponent, self._first = 0, 0  # bin k holds [(first + k) 2^exponent, ... + 2^exponent)
        self._bins: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Count finite numbers, of any shape."""
        values = values.astype(np.float64).ravel()
        if not len(values):
            return
        other = Values()
        other.count, other.low, other.high = len(values), float(values.min()), float(values.max())
        other.mean = float(values.mean())
        other._squares = float(np.square(values - other.mean).sum())
        other._exponent = _exponent(other.low, other.high)
        places = np.floor(np.ldexp(values, -other._exponent)).astype(np.int64)
        other._first = int(places.min())
        other._bins = np.bincount(places - other._first)
        self.merge(other)

    def merge(self, other: Values) -> None:
        """Add what another one has counted."""
        if not other.count:
            return
        both = self.count + other.count
        apart = other.mean - self.mean
        # Chan et al. 1979: squares about the two means are merged, so that nothing cancels.
        self._squares += other._squares + apart * apart * self.count * other.count / both
        self.mean += apart * other.count / both
        self.count = both
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        exponent = _exponent(self.low, self.high)
        parts = [part._coarser(exponent) for part in (self, other) if len(part._bins)]
        first = min(start for start, _ in parts)
        bins = np.zeros(max(start + len(b) for start, b in parts) - first, dtype=np.int64)
        for start, counts in parts:
            bins[start - first : start - first + len(counts)] += counts
        self._exponent, self._first, self._bins = exponent, first, bins

    @property
    def deviation(self) -> float:
        """Their standard deviation (n)."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0

    @property
    def histogram(self) -> tuple[list[float], list[int]]:
        """Edges of the bins, one more than there are bins, and how many numbers each holds."""
        edges = [
            math.ldexp(self._first + place, self._exponent) for place in range(len(self._bins) + 1)
        ]
        return edges, self._bins.tolist()

    def _coarser(self, exponent: int) -> tuple[int, NDArray[np.int64]]:
        """Return the first bin and the counts with wider bins."""
        shift = min(exponent - self._exponent, 62)  # all bits but the sign are gone then
        first = self._first >> shift
        places = ((self._first + np.arange(len(self._bins))) >> shift) - first
        return first, np.bincount(places, weights=self._bins).astype(np.int64)


def _exponent(low: float, high: float) -> int:
    """Return the exponent of the narrowest bins that may be; it only grows with the extent."""
    largest = max(abs(low), abs(high))
    exponent = (math.frexp(largest)[1] if largest else 0) - _FINEST
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= _BINS:
        exponent += 1
    return exponent
