"""What a setting takes beyond its type: marks on annotations, which every check of settings reads.

    def adam(learner: Learner, *, lr: Annotated[float, Range(ge=0)] = 1e-3) -> Optimizer: ...

A number without a mark is finite, and a whole one fits into 64 bits.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, final

import attrs

__all__ = [
    "ANY_NUMBER",
    "Count",
    "Fraction",
    "Length",
    "Natural",
    "NonNegative",
    "Positive",
    "Range",
    "Rate",
    "Share",
]


@final
@attrs.frozen(kw_only=True)
class Range:
    """The numbers that a setting takes, as in `Annotated[float, Range(gt=0, le=1)]`.

    NaN is in no range. Infinity is only in one that names it: `Range(gt=0, le=math.inf)`.

    Args:
        ge: The least number that is allowed.
        gt: Only larger numbers are allowed.
        le: The largest number that is allowed.
        lt: Only smaller numbers are allowed.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        """Return whether a number lies within the bounds."""
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return False
        if math.isnan(value) or (math.isinf(value) and value not in (self.ge, self.le)):
            return False
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        """Return the bounds as people read them, such as `> 0 and <= 1`."""
        bounds = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        given = [(sign, bound) for sign, bound in bounds if bound is not None]
        finite = [f"{sign} {bound:g}" for sign, bound in given if not math.isinf(bound)]
        infinite = [f"or {bound:g}" for _, bound in given if math.isinf(bound)]
        return " ".join([*([" and ".join(finite)] if finite else []), *infinite])


@final
@attrs.frozen(kw_only=True)
class Length:
    """How many items a list, or characters a text, has: `Annotated[tuple[int, ...], Length(ge=1)]`.

    Args:
        ge: The least number.
        le: The largest number; None: any.
    """

    ge: int = 0
    le: int | None = None

    def __contains__(self, value: Any) -> bool:
        """Return whether a value has a length that is allowed."""
        return len(value) >= self.ge and (self.le is None or len(value) <= self.le)

    def __str__(self) -> str:
        """Return the bounds as people read them, such as `of length >= 1`."""
        return f"of length {Range(ge=self.ge or None, le=self.le)}"


#: What a number without a mark is checked against: it is finite.
ANY_NUMBER = Range()

Positive = Annotated[float, Range(gt=0)]
NonNegative = Annotated[float, Range(ge=0)]
#: A part of a whole.
Fraction = Annotated[float, Range(ge=0, le=1)]
#: A part of a whole that is not empty.
Share = Annotated[float, Range(gt=0, le=1)]
#: What a running mean keeps of itself: all of it would never move.
Rate = Annotated[float, Range(ge=0, lt=1)]
Count = Annotated[int, Range(ge=1)]
Natural = Annotated[int, Range(ge=0)]
