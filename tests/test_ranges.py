"""The numbers and lengths that a setting takes."""

from __future__ import annotations

import math

import pytest

from mtlcore import Length, Range


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "said"),
    [
        (Range(), (0, -3e38, 2**63 - 1), (math.nan, math.inf, -math.inf, 1e39, 2**63), ""),
        (Range(ge=0), (0, 0.0, 1), (-1, -1e-300, math.nan, math.inf), ">= 0"),
        (Range(gt=0, le=1), (1e-300, 1), (0, 1.0000001), "> 0 and <= 1"),
        (Range(ge=0, lt=1), (0, 0.999), (1, -0.1), ">= 0 and < 1"),
        (Range(gt=0, le=math.inf), (1, math.inf), (0, -math.inf, math.nan), "> 0 or inf"),
        (Range(ge=-math.inf), (-math.inf, -1), (math.inf, math.nan), "or -inf"),
        (Range(lt=2**62), (2**62 - 1,), (2**62,), "< 4611686018427387904"),
        (Length(ge=1), ([1], "a"), ([], ""), "of length >= 1"),
        (Length(ge=2, le=3), ("ab", (1, 2, 3)), ("a", "abcd"), "of length >= 2 and <= 3"),
    ],
)
def test_a_range_holds_what_it_says(bounds, inside, outside, said):
    assert [value for value in inside if value not in bounds] == []
    assert [value for value in outside if value in bounds] == []
    assert str(bounds) == said
