"""What difference a number of seeds can detect.

A study of five seeds that finds no difference has not shown that there is none: a true difference
may be too small for the spread between seeds. How large one must be to be found in four of five
such studies is known from the spread of an earlier one, before a run, or of its own, after it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import final

import attrs

from mtlcore.results.comparison import Comparison
from mtlcore.results.statistics import Difference, Spread, student_t_quantile

#: How probably a difference is found that is as large as told.
POWER = 0.8
_STEPS = 400  # of Simpson's rule


@final
@attrs.frozen(kw_only=True)
class Detectable:
    """The smallest true differences from the baseline that a number of seeds finds.

    Args:
        delta_m: In percent of delta_m; NaN where no spread is known.
        metrics: (task, its first metric) -> in the metric's own unit.
    """

    delta_m: float
    metrics: Mapping[tuple[str, str], float]

    def __str__(self) -> str:
        texts = [] if math.isnan(self.delta_m) else [f"{self.delta_m:.2g} % of Δm"]
        texts += [f"{value:.2g} of {'.'.join(path)}" for path, value in self.metrics.items()]
        return ", ".join(texts)


def detectable(
    comparison: Comparison, seeds: int, tasks: Collection[str] | None = None
) -> Detectable | None:
    """Return what a study of so many seeds detects whose spread is that of a comparison.

    The spread is that of the differences from the baseline between runs of the same seed, that of
    the median variant.

    Args:
        comparison: Of an earlier study, or of the study itself.
        seeds: How many the study has.
        tasks: Those of the study; unset: those of the comparison. Where they are others, nothing is
            known of delta_m.

    Returns:
        None where no variant shares two seeds with the baseline, or seeds < 2.
    """
    others = [v for v in comparison.variants if v.name != comparison.baseline]
    asked = set(comparison.counted if tasks is None else tasks)
    spreads = {
        (task, metric): _median_spread(comparison.difference(v, task, metric) for v in others)
        for task, metric in ((t, next(iter(m))) for t, m in comparison.counted.items())
        if task in asked
    }
    total = math.nan
    if asked == set(comparison.counted):
        total = _median_spread(comparison.delta_m_difference(variant) for variant in others)
    if seeds < 2 or all(map(math.isnan, (total, *spreads.values()))):
        return None
    factor = detectable_effect(seeds - 1) / math.sqrt(seeds)
    return Detectable(
        delta_m=factor * total,
        metrics={path: factor * std for path, std in spreads.items() if not math.isnan(std)},
    )


def _median_spread(differences: Iterable[Difference | None]) -> float:
    spreads = [Spread(found.values).std for found in differences if found is not None]
    finite = [std for std in spreads if math.isfinite(std)]
    return statistics.median(finite) if finite else math.nan


@lru_cache
def detectable_effect(degrees_of_freedom: int, power: float = POWER) -> float:
    """Return the true mean, in its standard errors, that Student's test finds so probably.

    It is the noncentrality at which the two-sided 5 % test has the power asked for.
    """
    low, high = 0.0, 1000.0
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if power_of_test(middle, degrees_of_freedom) < power:
            low = middle
        else:
            high = middle
    return high


def power_of_test(effect: float, degrees_of_freedom: int) -> float:
    """Return how probably Student's two-sided 5 % test finds a mean of `effect` standard errors.

    The test's statistic is (Z + effect) / S, with S the root of a chi-squared variable over its
    degrees of freedom; its probability beyond the quantile is integrated over S.
    """
    limit, normal = student_t_quantile(degrees_of_freedom), statistics.NormalDist()
    top = 1 + 8 / math.sqrt(2 * degrees_of_freedom)
    width = top / _STEPS

    def density(s: float) -> float:
        n = degrees_of_freedom
        if s == 0:
            return math.sqrt(2 / math.pi) if n == 1 else 0.0
        log = (n - 1) * math.log(s) - n * s * s / 2 + n / 2 * math.log(n)
        return math.exp(log - (n / 2 - 1) * math.log(2) - math.lgamma(n / 2))

    def found(s: float) -> float:
        return normal.cdf(effect - limit * s) + normal.cdf(-effect - limit * s)

    total = math.fsum(
        (1 if i in (0, _STEPS) else 4 if i % 2 else 2) * density(i * width) * found(i * width)
        for i in range(_STEPS + 1)
    )
    return total * width / 3
