"""GO4Align as a balancer of losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mtlcore.balancing import BalancerContext, LossBalancer, floats
from mtlcore.data import Batch
from mtlcore.errors import MtlError
from mtlcore.ranges import Count, NonNegative
from mtlcore.tasks import Task
from mtlcore_go4align.grouping import group_means

# An indicator of a loss below would not fit into single precision.
_SMALLEST = 1e-25


class GO4Align(LossBalancer):
    """Group optimization for task alignment (Shen et al., NeurIPS 2024, arXiv 2404.06486).

    Each task has a probability p_i, 1 / K at first, which large losses lower in every step:
    `p_i <- p_i exp(-eta L_i)`, divided by the sum. With these the tasks' indicators are

        r_i = p_i sum_j L_j / L_i,

    which are put into G groups, those of the least sum of squared distances from the groups' means.
    The weight of loss i is the mean of its group. Weights are for trunk and heads alike, and about
    `mean(L) / L_i`, so that the weighted losses are on one scale and their sum on that of the plain
    sum.

    Groups of numbers on a line are intervals, and the best ones are found exactly; nothing is
    drawn at random.

    All is of the present tasks. An absent task keeps its probability, and what the others have
    together is what they had before. A loss of 0 (below 1e-25), which has no such indicator, has
    the weight 1 and is in no group; it counts in the sum. Losses must not be negative. It reads the
    losses of tasks, so it stands first in a chain. The result is not affine in the losses, so
    accumulated gradients differ from those of one large batch.

    Args:
        groups: G. With 1, all tasks have one weight; with as many as tasks, each has its own.
        step_size: eta.
    """

    affine = False

    def __init__(self, *, groups: Count = 2, step_size: NonNegative = 1e-4) -> None:
        super().__init__()
        self._groups, self._step_size = groups, step_size
        # K p_i, so that a task that joins begins with as much as the others did.
        self._masses: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Make room for the tasks."""
        for task in tasks:
            self._masses.setdefault(task.name, 1.0)

    def reset(self) -> None:
        self._masses, self._last = dict.fromkeys(self._masses, 1.0), {}

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """Weigh the losses.

        Raises:
            MtlError: a loss is negative.
        """
        weights = self._weights(*self._moved(floats(losses)[0]))
        return {task: loss * weights[task] for task, loss in losses.items()}

    def after_step(self, context: BalancerContext) -> None:
        """Keep the probabilities that the step was taken with."""
        masses, losses = self._moved(context.losses)
        self._last.update(self._weights(masses, losses))
        self._masses.update(masses)

    def current_weights(self) -> dict[str, float]:
        """Return the weight of each task in the last step that had it."""
        return dict(self._last)

    def get_extra_state(self) -> dict[str, Any]:
        return {"masses": self._masses, "last": self._last}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._masses, self._last = dict(state["masses"]), dict(state["last"])

    def _moved(self, losses: Mapping[str, float]) -> tuple[dict[str, float], Mapping[str, float]]:
        """Return the present tasks' masses after a step of these losses, and the losses."""
        below = [task for task, loss in losses.items() if loss < 0]
        if below:
            raise MtlError(
                f"balancer go4align: the loss of {', '.join(below)} is negative, and weights of "
                "opposite signs balance nothing; choose another loss for it"
            )
        before = {task: self._masses[task] for task in losses}
        if not all(map(math.isfinite, losses.values())):
            return before, losses  # the step will be skipped
        # The least loss keeps its mass, so that not all of them vanish.
        least = min(losses.values(), default=0.0)
        after = {t: before[t] * math.exp(-self._step_size * (losses[t] - least)) for t in losses}
        # A mass that vanished could never come back.
        after = {task: max(mass, 1e-300) for task, mass in after.items()}
        share = sum(before.values()) / sum(after.values()) if after else 1.0
        return {task: mass * share for task, mass in after.items()}, losses

    def _weights(
        self, masses: Mapping[str, float], losses: Mapping[str, float]
    ) -> dict[str, float]:
        weights = dict.fromkeys(losses, 1.0)
        total, mass = sum(losses.values()), sum(masses.values())
        if not math.isfinite(total):
            return weights  # the step will be skipped
        grouped = [task for task, loss in losses.items() if loss > _SMALLEST]
        indicators = [masses[task] / mass * total / losses[task] for task in grouped]
        means = group_means(indicators, self._groups)
        return {**weights, **dict(zip(grouped, means, strict=True))}
