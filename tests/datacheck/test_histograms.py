"""Histograms of values that come in parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlcore.datacheck import Values

NUMBERS = st.lists(
    st.floats(-(2.0**99), 2.0**99, width=32, allow_nan=False, allow_infinity=False),
    min_size=1,
    max_size=40,
)


def counted(*parts):
    values = Values()
    for part in parts:
        values.add(np.array(part, dtype=np.float32))
    return values


@settings(settings.get_profile("fast"))
@given(NUMBERS, NUMBERS)
def test_the_order_of_the_parts_changes_nothing(one, other):
    together, forwards, backwards = counted(one + other), counted(one, other), counted(other, one)
    assert forwards.histogram == backwards.histogram == together.histogram
    assert forwards.low == together.low and forwards.high == together.high


@settings(settings.get_profile("fast"))
@given(NUMBERS, NUMBERS)
def test_parts_that_are_merged_are_what_the_whole_is(one, other):
    first, second = counted(one), counted(other)
    first.merge(second)
    exact = np.array(one + other, dtype=np.float32).astype(np.float64)
    assert first.count == len(exact)
    assert first.mean == pytest.approx(exact.mean(), rel=1e-9, abs=1e-9 * np.abs(exact).max())
    assert first.deviation == pytest.approx(exact.std(), rel=1e-6, abs=1e-9 * np.abs(exact).max())


@settings(settings.get_profile("fast"))
@given(NUMBERS)
def test_each_bin_holds_the_values_between_its_edges(numbers):
    edges, counts = counted(numbers).histogram
    exact = np.array(numbers, dtype=np.float32).astype(np.float64)
    assert len(counts) <= 48
    for start, end, number in zip(edges[:-1], edges[1:], counts, strict=True):
        assert number == ((exact >= start) & (exact < end)).sum()


def test_nothing_is_nothing():
    values = counted([])
    values.merge(Values())
    assert values.count == 0 and values.deviation == 0 and values.histogram[1] == []


def test_values_that_hardly_differ_have_their_bins():
    edges, counts = counted([1.0, 1.0 + 2**-18]).histogram
    assert sum(counts) == 2 and counts[0] == counts[-1] == 1
    assert edges[-1] - edges[0] < 2**-16
