"""Seeds: means, their spread, and intervals of paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from functools import lru_cache
from typing import final

import attrs

LEVEL = 0.95


@final
@attrs.frozen
class Spread:
    """One figure over seeds.

    Args:
        values: seed -> value; NaN where a run has no such value.
    """

    values: Mapping[int, float]

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean; NaN where a value is, or where there is none."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def std(self) -> float:
        """The sample standard deviation (divided by n - 1); NaN for a single seed."""
        if self.n < 2 or not all(map(math.isfinite, self.values.values())):
            return math.nan
        return statistics.stdev(self.values.values())


@final
@attrs.frozen
class Difference:
    """Differences from the baseline, each between runs of the same seed.

    Args:
        values: seed -> variant minus baseline, for the seeds that both have.
    """

    values: Mapping[int, float]

    @property
    def n(self) -> int:
        """The number of common seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean difference; NaN where a value is, or where there is none."""
        return Spread(self.values).mean

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval of the mean difference; NaN for a single seed.

        It holds where differences between seeds are normally distributed.
        """
        if self.n < 2:
            return math.nan, math.nan
        half = student_t(self.n - 1) * Spread(self.values).std / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of zero."""
        low, high = self.interval
        return low > 0 or high < 0


@lru_cache
def student_t(freedom: int, level: float = LEVEL) -> float:
    """The half-width of Student's two-sided interval in standard errors.

    Args:
        freedom: degrees of freedom, a positive whole number.
        level: the probability within.
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(middle)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)): the finite series of Abramowitz and Stegun, 26.7.3-4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
