"""What a run was asked about its own length, which says whether it can be made longer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, final

import attrs

_NEVER = -1


@final
@attrs.define
class Asked:
    """Who asked how much of the run is done, and what the answers were; part of every checkpoint.

    A run that is made longer equals one that was long from the start only where every answer so far
    would have been the same.

    Attributes:
        values: Who read the fraction itself -> the first step at which it did.
        reached: Who asked whether a fraction was reached -> that fraction, as text -> the first
            step at which the answer was yes, -1 while it was no.
        evaluations: Whose answers depend on after which epochs the run is evaluated.
    """

    values: dict[str, int] = attrs.field(factory=dict)
    reached: dict[str, dict[str, int]] = attrs.field(factory=dict)
    evaluations: list[str] = attrs.field(factory=list)

    def value(self, by: str, step: int) -> None:
        """Note that the fraction itself was read."""
        self.values.setdefault(by, step)

    def point(self, by: str, fraction: float, step: int, answer: bool) -> None:
        """Note whether a fraction of the run was reached at a step."""
        points = self.reached.setdefault(by, {})
        before = points.setdefault(repr(fraction), _NEVER)
        if answer and before == _NEVER:
            points[repr(fraction)] = step

    def evaluated(self, by: str) -> None:
        """Note that something learns from evaluations, wherever they are."""
        if by not in self.evaluations:
            self.evaluations.append(by)

    def differences(self, done: int, before: int, total: int) -> list[str]:
        """Return what would have been another answer in a run of another length; none: nothing.

        Args:
            done: Steps that were taken.
            before: Steps of the whole run, as it was.
            total: Steps of the run of another length.
        """
        found = [
            f"{by} has followed how much of the run is done since step {step}, of {before} steps "
            f"and not of {total}"
            for by, step in self.values.items()
        ]
        for by, points in self.reached.items():
            for text, step in points.items():
                fraction = float(text)
                other = bisect_left(range(done), True, key=lambda s: s / total >= fraction)
                if other != (done if step == _NEVER else step):
                    came = "has not come" if step == _NEVER else f"came at step {step}"
                    comes = "later" if other == done else f"at step {other}"
                    found.append(f"{by}: {fraction:g} of the run {came}, and would come {comes}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON tree."""
        return attrs.asdict(self)

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> Asked:
        """Return what `to_json` returned as an object again."""
        return cls(**tree)
