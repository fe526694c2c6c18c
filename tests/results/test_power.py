"""What difference so many seeds detect, against scipy's noncentral t distribution."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from mtlcore.results.power import detectable_effect, power_of_test
from mtlcore.results.statistics import Difference

# Degrees of freedom -> effect with power .8, and the power at an effect of 2, by scipy 1.17.1:
# f(nc) = nct.sf(t.ppf(.975, df), df, nc) + nct.cdf(-t.ppf(.975, df), df, nc).
SCIPY = {
    2: (5.653489, 0.218307),
    3: (4.255899, 0.288752),
    4: (3.76106, 0.335965),
    9: (3.149633, 0.431326),
    29: (2.898743, 0.489537),
    99: (2.829126, 0.508265),
}


@pytest.mark.parametrize("degrees", SCIPY)
def test_effects_and_powers_are_those_of_scipy(degrees: int) -> None:
    effect, power = SCIPY[degrees]
    assert detectable_effect(degrees) == pytest.approx(effect, rel=1e-5)
    assert power_of_test(2.0, degrees) == pytest.approx(power, rel=1e-5)


@pytest.mark.parametrize("degrees", [1, 2, 4, 30])
def test_without_an_effect_one_of_twenty_is_found(degrees: int) -> None:
    assert power_of_test(0.0, degrees) == pytest.approx(0.05, abs=2e-5)


def test_four_of_five_simulated_studies_find_it() -> None:
    seeds, deviation, trials = 5, 0.3, 4000
    true = detectable_effect(seeds - 1) * deviation / math.sqrt(seeds)
    draw = random.Random(0).gauss
    found = statistics.fmean(
        Difference({seed: draw(true, deviation) for seed in range(seeds)}).excludes_zero
        for _ in range(trials)
    )
    assert found == pytest.approx(0.8, abs=0.02)
