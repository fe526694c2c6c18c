"""Statistics over seeds: means, their spread, and intervals of paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from functools import lru_cache
from typing import final

import attrs

CONFIDENCE = 0.95


@final
@attrs.frozen
class Spread:
    """One metric over seeds.

    Args:
        values: Seed -> value; NaN where a run has no such value.
    """

    values: Mapping[int, float]

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean; NaN where a value is NaN, or where there is none."""
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
        values: Seed -> variant minus baseline, for the seeds that both have.
    """

    values: Mapping[int, float]

    @property
    def n(self) -> int:
        """The number of common seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean difference; NaN where a value is NaN, or where there is none."""
        return Spread(self.values).mean

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval of the mean difference; NaN for a single seed.

        It assumes that differences between seeds are normally distributed.
        """
        if self.n < 2:
            return math.nan, math.nan
        half = student_t_quantile(self.n - 1) * Spread(self.values).std / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of zero."""
        low, high = self.interval
        return low > 0 or high < 0


@lru_cache
def student_t_quantile(degrees_of_freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return the two-sided quantile t of Student's distribution, P(|T| < t) = confidence.

    `statistics` has no Student distribution, and scipy, 100 MB installed, would be required for
    this number alone. For whole degrees of freedom the distribution function is a finite sum, which
    is inverted by bisection down to neighbouring floats. The tests compare it with scipy's values.

    Args:
        degrees_of_freedom: A positive whole number.
        confidence: A probability above 0 and below 1.
    """
    if degrees_of_freedom < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"no quantile of {degrees_of_freedom} degrees of freedom at confidence {confidence}"
        )
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        inside = _probability_within(middle, degrees_of_freedom)
        low, high = (middle, high) if inside < confidence else (low, middle)
    return math.sqrt(degrees_of_freedom) * math.tan(middle)


def _probability_within(angle: float, degrees_of_freedom: int) -> float:
    """Return P(|T| < sqrt(n) tan(angle)) by Abramowitz and Stegun, 26.7.3 (odd n) and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees_of_freedom % 2 == 1
    power, term = (1, cosine) if odd else (0, 1.0)
    terms = []
    while power < degrees_of_freedom - 1:
        terms.append(term)
        term *= cosine**2 * (power + 1) / (power + 2)
        power += 2
    total = sine * math.fsum(terms)
    return 2 / math.pi * (angle + total) if odd else total
