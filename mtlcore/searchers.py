"""The contract of searchers, which choose the settings of a study's trials."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import attrs

__all__ = ["Choices", "FloatRange", "IntRange", "Searcher", "Setting", "Space", "Trial"]


@final
@attrs.frozen(kw_only=True)
class FloatRange:
    """The numbers from `low` to `high`, both among them.

    Args:
        low: The least one.
        high: The largest one.
        log: Whether equal factors count alike, instead of equal differences.
    """

    low: float
    high: float
    log: bool = False

    def __contains__(self, value: object) -> bool:
        """Return whether a value is one of them."""
        return isinstance(value, float | int) and self.low <= value <= self.high

    def at(self, share: float) -> float:
        """Return the number at a share of the way, from 0 for `low` to 1 for `high`."""
        if share in (0, 1):  # without rounding
            return self.high if share else self.low
        if not self.log:
            return min(self.high, self.low + share * (self.high - self.low))
        low, high = math.log(self.low), math.log(self.high)
        return min(self.high, max(self.low, math.exp(low + share * (high - low))))


@final
@attrs.frozen(kw_only=True)
class IntRange:
    """The whole numbers `low`, `low + step`, ... up to `high`.

    Args:
        low: The least one.
        high: The largest one.
        log: Whether equal factors count alike; then `step` is 1.
        step: The difference of two neighbours.
    """

    low: int
    high: int
    log: bool = False
    step: int = 1

    def __contains__(self, value: object) -> bool:
        """Return whether a value is one of them."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and value in range(self.low, self.high + 1, self.step)

    def at(self, share: float) -> int:
        """Return the number at a share of the way, each having an equal part of it."""
        if self.log:
            within = FloatRange(low=self.low - 0.5, high=self.high + 0.5, log=True)
            return min(self.high, max(self.low, round(within.at(share))))
        count = (self.high - self.low) // self.step + 1
        return self.low + self.step * min(count - 1, int(share * count))


@final
@attrs.frozen(kw_only=True)
class Choices:
    """Values without an order, which may be tables.

    Args:
        values: At least one.
    """

    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        """Return whether a value is one of them."""
        return any(value == one and type(value) is type(one) for one in self.values)

    def at(self, share: float) -> Any:
        """Return the value at a share of the way, each having an equal part of it."""
        return self.values[min(len(self.values) - 1, int(share * len(self.values)))]


Setting = FloatRange | IntRange | Choices

#: Path of a setting, such as "optimizer.lr" -> the values that it may have.
Space = Mapping[str, Setting]


@final
@attrs.frozen(kw_only=True)
class Trial:
    """A trial: settings, and what is known of them.

    Args:
        number: Trials are counted from 0, in the order in which they were asked for.
        parameters: Path of each setting -> its value.
        status: What became of it. One whose values are not finite has "failed".
        values: One per objective, lower is better; empty before it is finished.
        intermediate: Epoch -> value of the only objective, lower is better; empty where there are
            several, or where it is not known yet which way is better.
    """

    number: int
    parameters: Mapping[str, Any]
    status: Literal["running", "finished", "pruned", "failed"]
    values: tuple[float, ...] = ()
    intermediate: Mapping[int, float] = attrs.field(factory=dict)


class Searcher(abc.ABC):
    """What chooses settings, made as `Searcher(space, objectives, seed, **settings)`.

    It keeps nothing: what it answers depends on what it is told, so that a study may be stopped
    after any trial and goes on as if it had not been. All values are such that lower is better.

    Args:
        space: The settings to choose.
        objectives: How many values a trial has; a searcher may refuse more than one.
        seed: Of its random numbers.
    """

    @abc.abstractmethod
    def ask(self, number: int, trials: Sequence[Trial]) -> Mapping[str, Any]:
        """Return the values of the next trial, one from each range.

        Args:
            number: The number of that trial.
            trials: All earlier ones whose values are in the space, by number.
        """

    def prunes(self, trial: Trial, trials: Sequence[Trial]) -> bool:
        """Return whether a trial should stop, because it leads nowhere; by default it never does.

        Asked after each evaluation of a trial that runs, where there is one objective.

        Args:
            trial: The running trial; its last intermediate value is new.
            trials: All others whose values are in the space, by number.
        """
        return False
