"""What a setting takes beyond its type: marks on annotations, which every check of settings reads.

An optimizer with a rate that is not negative, and a backbone around another one::

    def adam(learner: Learner, *, lr: Annotated[float, Range(ge=0)] = 1e-3) -> Optimizer: ...

    def around(
        tasks: Sequence[Task],
        *,
        inner: Annotated[Callable[..., Backbone] | None, Nested("backbones")] = None,
    ) -> Backbone: ...

A number without a mark is finite in single precision, and a whole one fits into 64 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, final

import attrs

__all__ = [
    "ANY_NUMBER",
    "Channels",
    "Count",
    "Decay",
    "Dilations",
    "Fraction",
    "Layers",
    "LearningRate",
    "Length",
    "Name",
    "Natural",
    "Nested",
    "NonNegative",
    "Positive",
    "ProperFraction",
    "Range",
    "Seed",
    "Share",
    "Size",
    "Width",
]


_LARGEST = 3.4028234663852886e38


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
        # Networks compute in single precision: what is larger becomes infinity.
        finite = abs(value) <= _LARGEST  # NaN is not
        if not finite and (math.isnan(value) or value not in (self.ge, self.le)):
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
        finite = [f"{sign} {_text(bound)}" for sign, bound in given if not math.isinf(bound)]
        infinite = [f"or {bound:g}" for _, bound in given if math.isinf(bound)]
        return " ".join([*([" and ".join(finite)] if finite else []), *infinite])


def _text(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


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


@final
@attrs.frozen
class Nested:
    """A setting that is another component: a table of its name and its own settings.

    What the target receives is a function that makes the component, called with what the core would
    pass to it. So in Python any function will do, and a class with `functools.partial`.

    Args:
        kind: Of component, as `mtl list` names it, such as "backbones".
    """

    kind: str

    def __contains__(self, value: Any) -> bool:
        """Return whether a value is a table with a name."""
        return isinstance(value, Mapping) and isinstance(value.get("name"), str)

    def __str__(self) -> str:
        """Return what people write, such as `a table that names one of mtl list backbones`."""
        return f"a table that names one of mtl list {self.kind}"


#: What a number without a mark is checked against: it is finite.
ANY_NUMBER = Range()

Positive = Annotated[float, Range(gt=0)]
NonNegative = Annotated[float, Range(ge=0)]
#: A part of a whole.
Fraction = Annotated[float, Range(ge=0, le=1)]
#: A part of a whole that is not empty.
Share = Annotated[float, Range(gt=0, le=1)]
#: A part of a whole that is neither nothing nor all of it.
ProperFraction = Annotated[float, Range(gt=0, lt=1)]
#: What a running mean keeps of itself; one that keeps all of it would never move.
Decay = Annotated[float, Range(ge=0, lt=1)]
LearningRate = Annotated[float, Range(ge=0)]
#: What a directory is called by; file systems end names at 255 bytes.
Name = Annotated[str, Length(ge=1, le=100)]
Natural = Annotated[int, Range(ge=0)]
Count = Annotated[int, Range(ge=1)]
#: Streams of random numbers take 64 bits, and a run has several of each seed.
Seed = Annotated[int, Range(ge=0, lt=2**62)]
#: Factor on the numbers of channels of a network. Memory grows with its square.
Width = Annotated[float, Range(gt=0, le=16)]
Channels = Annotated[int, Range(ge=1, le=1_000_000)]
#: Numbers of channels, one per layer.
Layers = Annotated[tuple[Channels, ...], Length(ge=1, le=1000)]
Dilations = Annotated[tuple[Annotated[int, Range(ge=1, le=10_000)], ...], Length(ge=1, le=100)]
#: Height and width in pixels.
Size = tuple[Annotated[int, Range(ge=1, le=65_536)], Annotated[int, Range(ge=1, le=65_536)]]
