"""How long steps take: medians, and what is left out of them."""

from __future__ import annotations

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlcore.engine.step_times import StepTimes


def times(*seconds: float) -> StepTimes:
    found = StepTimes()
    for value in seconds:
        found.add(value)
    return found


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=60))
def test_a_median_is_known_to_two_percent_and_survives_a_checkpoint(seconds: list[float]) -> None:
    found = times(*seconds)
    low = statistics.median_low(seconds)
    assert found.median == pytest.approx(low, rel=0.02)
    again = StepTimes.from_state(json.loads(json.dumps(found.state())))
    assert (again.median, again.steps, again.stalled) == (
        found.median, len(seconds), found.stalled,
    )  # fmt: skip


def test_a_machine_that_slept_does_not_count_as_slow() -> None:
    found = times(*[0.1] * 50, 1800.0)
    assert found.median == pytest.approx(0.1)
    assert found.stalled == pytest.approx(1800.0)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param([0.01] * 20 + [3.0], id="a short one may be the loading of data"),
        pytest.param([30.0] * 5 + [200.0], id="long steps differ"),
        pytest.param([], id="none"),
    ],
)
def test_nothing_stood_still(seconds: list[float]) -> None:
    assert times(*seconds).stalled == 0


def test_without_steps_there_is_no_median() -> None:
    assert math.isnan(StepTimes().median)
