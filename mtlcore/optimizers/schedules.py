"""How the learning rate changes over a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, final

import attrs

from mtlcore.balancing import BalancerContext
from mtlcore.metrics import beats
from mtlcore.ranges import Fraction, Natural, NonNegative, Positive

_PATH = "optimizer.schedule"


@final
@attrs.frozen(kw_only=True)
class Schedule:
    """A schedule of the learning rate; fractions are of the whole run.

    Args:
        name: Shape of the schedule.
        at: For "step": the fractions of the run at which the rate is multiplied by `gamma`.
        gamma: For "step" and "plateau": the factor.
        power: For "poly": the exponent of (1 - progress).
        patience: For "plateau": evaluations without a better one before the rate falls; the better
            one has the lower mean rank of the tasks' validation losses.
        warmup: Fraction of the run over which the rate rises linearly from zero.
    """

    name: Literal["constant", "step", "cosine", "poly", "plateau"] = "constant"
    at: tuple[Fraction, ...] = (0.5,)
    gamma: Positive = 0.5
    power: NonNegative = 0.9
    patience: Natural = 10
    warmup: Fraction = 0.0

    def factor(self, context: BalancerContext) -> float:
        """Return the factor on the base rate in the step that the context describes.

        The factor of a plateau schedule for its falls is `gamma` to their number; it comes beside.
        """
        shape = 1.0
        if self.name == "step":
            shape = self.gamma ** sum(context.reached(point, _PATH) for point in self.at)
        elif self.name == "cosine":
            shape = 0.5 * (1 + math.cos(math.pi * context.progress_for(_PATH)))
        elif self.name == "poly":
            shape = (1 - context.progress_for(_PATH)) ** self.power
        elif self.name == "plateau":
            context.asked.evaluated(_PATH)
        return shape * self._rising(context)

    def _rising(self, context: BalancerContext) -> float:
        if not self.warmup:
            return 1.0
        # The first step of a warm-up must not be lost to a rate of zero.
        return min(1.0, (context.progress_for(_PATH) + 1e-3) / self.warmup)


@final
class Plateau:
    """Counts evaluations without improvement, as torch's `ReduceLROnPlateau` does.

    Of several tasks, an evaluation improves on the best one where its losses have the lower mean
    rank among all evaluations (see `mtlcore.metrics.mean_ranks`): a sum of losses would follow the
    task with the largest one.

    Args:
        patience: Evaluations without improvement that are waited for.

    Attributes:
        falls: How often the rate has fallen.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._evaluations: list[dict[str, float]] = []
        self._best, self._waited = 0, 0
        self.falls = 0

    def update(self, losses: Mapping[str, float]) -> None:
        """Count an evaluation by the losses of its tasks."""
        self._evaluations.append(dict(losses))
        if len(self._evaluations) == 1 or beats(self._evaluations, self._best):
            self._best, self._waited = len(self._evaluations) - 1, 0
            return
        self._waited += 1
        if self._waited > self._patience:
            self.falls, self._waited = self.falls + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a JSON tree."""
        return {
            "evaluations": list(self._evaluations),
            "best": self._best,
            "waited": self._waited,
            "falls": self.falls,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._evaluations = list(state["evaluations"])
        self._best, self._waited, self.falls = state["best"], state["waited"], state["falls"]
