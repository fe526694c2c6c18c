"""AdaLoss as a balancer of losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mtlcore.balancing import BalancerContext, LossBalancer, floats
from mtlcore.errors import MtlError
from mtlcore.ranges import Decay

# The inverse of a mean below would not fit into single precision.
_SMALLEST = 1e-30


class AdaLoss(LossBalancer):
    """Weights inverse to the mean losses (Hu et al., AAAI 2019, arXiv 1708.06832).

    With a running mean of each loss, `a_i <- m a_i + (1 - m) L_i`, which is the loss itself at
    first, loss i weighs `1 / a_i`, for trunk and heads alike. The present loss is in the mean
    before that is used. For means that move slowly, this is descent of `sum_i log E[L_i]`: a task
    counts by the relative change of its loss.

    The weighted losses are about 1 each, whatever their scales. With `normalise` the weights of the
    present tasks sum to their number, as those of the plain sum do.

    An absent task keeps its mean. A mean of 0 (below 1e-30) has no inverse: the weight is 1, also
    where the others are normalised. Losses must not be negative. It reads the losses of tasks, so
    it stands first in a chain. The result is not affine in the losses, so accumulated gradients
    differ from those of one large batch.

    Args:
        momentum: m, how much of a running mean a step keeps.
        normalise: whether the weights sum to the number of present tasks.
    """

    affine = False

    def __init__(self, *, momentum: Decay = 0.99, normalise: bool = False) -> None:
        super().__init__()
        self._momentum, self._normalise = momentum, normalise
        self._means: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """Weigh the losses.

        Raises:
            MtlError: a loss is negative.
        """
        weights = self._weights(self._moved(floats(losses)[0]))
        return {task: loss * weights[task] for task, loss in losses.items()}

    def after_step(self, context: BalancerContext) -> None:
        """Keep the means that the step was taken with."""
        means = self._moved(context.losses)
        self._means.update(means)
        self._last.update(self._weights(means))

    def reset(self) -> None:
        self._means, self._last = {}, {}

    def current_weights(self) -> dict[str, float]:
        """Return the weight of each task in the last step that had it."""
        return dict(self._last)

    def get_extra_state(self) -> dict[str, Any]:
        return {"means": self._means, "last": self._last}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._means, self._last = dict(state["means"]), dict(state["last"])

    def _moved(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Return the present tasks' means with these losses in them."""
        below = [task for task, loss in losses.items() if loss < 0]
        if below:
            raise MtlError(
                f"balancer adaloss: the loss of {', '.join(below)} is negative, and the inverse of "
                "its mean would turn it round; choose another loss for it"
            )
        kept = self._momentum
        return {
            task: kept * self._means[task] + (1 - kept) * loss if task in self._means else loss
            for task, loss in losses.items()
        }

    def _weights(self, means: Mapping[str, float]) -> dict[str, float]:
        if not all(map(math.isfinite, means.values())):
            return dict.fromkeys(means, 1.0)  # the step will be skipped
        weights = {task: 1 / mean if mean > _SMALLEST else 1.0 for task, mean in means.items()}
        if not self._normalise:
            return weights
        inverse = {task: weight for task, weight in weights.items() if means[task] > _SMALLEST}
        total = sum(inverse.values())
        return {
            task: len(inverse) * weight / total if task in inverse else 1.0
            for task, weight in weights.items()
        }
