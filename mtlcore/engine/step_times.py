"""How long steps take, in a form that a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import attrs

_RATIO = 1.02  # between neighbouring bins: a median is known to one percent
_STALL_MEDIANS = 10  # a step this many times as long as the median, and ...
_STALL_SECONDS = 10.0  # ... no shorter than this is one in which the process stood still


@final
@attrs.define
class StepTimes:
    """A histogram of the times of steps, over all processes of a run.

    A mean would count a machine that slept, or a process that was stopped for a while, as slow
    steps; a median does not, and what it leaves out can be told.

    Args:
        bins: Number of a bin -> [how many steps fell into it, their seconds together].
    """

    bins: dict[int, list[float]] = attrs.field(factory=dict)

    @classmethod
    def from_state(cls, state: Sequence[Sequence[float]]) -> StepTimes:
        """Return the histogram whose state this is."""
        return cls({int(number): [steps, total] for number, steps, total in state})

    def state(self) -> list[list[float]]:
        """Return number, steps and seconds of each bin."""
        return [[number, *content] for number, content in sorted(self.bins.items())]

    def add(self, seconds: float) -> None:
        """Count a step."""
        number = math.floor(math.log(max(seconds, 1e-9), _RATIO))
        steps, total = self.bins.get(number, [0, 0.0])
        self.bins[number] = [steps + 1, total + seconds]

    @property
    def steps(self) -> int:
        """The number of steps."""
        return int(sum(steps for steps, _ in self.bins.values()))

    @property
    def median(self) -> float:
        """The median in seconds, known to one percent; NaN without a step."""
        below, half = 0.0, self.steps / 2
        for number in sorted(self.bins):
            steps, total = self.bins[number]
            below += steps
            if below >= half:
                return total / steps
        return math.nan

    @property
    def stalled(self) -> float:
        """The seconds of all steps in which the process must have stood still.

        Those are steps of ten seconds and more that took ten times as long as the median.
        """
        limit = max(_STALL_SECONDS, _STALL_MEDIANS * self.median) if self.bins else math.inf
        return math.fsum(total for steps, total in self.bins.values() if total / steps >= limit)
