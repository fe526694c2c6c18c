"""MGDA and MGDA-UB as a balancer."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mtlcore.balancing import BalancerContext, Scope, Solution, SolvedBalancer
from mtlcore.balancing.solvers import CANCELLED, Array, min_norm_point
from mtlcore.errors import MtlError, UsageError

Normalisation = Literal["none", "l2", "loss", "loss+"]


class MGDA(SolvedBalancer):
    """Multiple gradient descent for many tasks (Sener & Koltun 2018, arXiv 1810.04650, eq. 3).

    The update is the shortest convex combination of the task gradients,

        w = argmin |sum_i w_i g_i|^2    over w >= 0, sum w = 1,

    along which no task's loss rises. Weights sum to 1, so the update has the scale of a mean, not
    of the sum of the losses, and is no longer than the shortest gradient. With the scope
    "features" the gradients are those of the maps that heads read: MGDA-UB (section 3.3), whose
    objective bounds the other from above, at the cost of one pass through the trunk.

    The problem is solved exactly, by Wolfe's algorithm; the authors' code approaches it by
    Frank-Wolfe steps. Where the shortest combination is zero there is no common descent: the
    update is zero, and `status` is "degenerate". So it is where a task has no gradient, which
    stops all others, as the method has it.

    Args:
        normalise: what gradients are divided by to find the weights, which then apply to the
            gradients as they are: "none"; "l2", their length; "loss", the task's loss; "loss+",
            both. Without a context, which knows no losses, "loss" is "none", "loss+" is "l2", and
            `status` is "degenerate".
        scope: "shared", or "features" for MGDA-UB.
        weigh_heads: whether parameters of a single task, such as its head, are weighted by w too,
            as in the authors' code, where the weights multiply the losses.

    Raises:
        UsageError: a setting has another value.
    """

    def __init__(
        self,
        *,
        normalise: Normalisation = "none",
        scope: Literal["shared", "features"] = "shared",
        weigh_heads: bool = False,
    ) -> None:
        super().__init__()
        if normalise not in ("none", "l2", "loss", "loss+"):
            raise UsageError(
                f"balancer.normalise: {normalise!r} is none of 'none', 'l2', 'loss' and 'loss+'"
            )
        if scope not in ("shared", "features"):
            raise UsageError(f"balancer.scope: {scope!r} is neither 'shared' nor 'features'")
        self._by_length = normalise in ("l2", "loss+")
        self._by_loss = normalise in ("loss", "loss+")
        self._weigh_heads = weigh_heads
        self.scope: Scope = scope

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        """Return the weights.

        Raises:
            MtlError: gradients are divided by losses, and one is not above 0.
        """
        norms = np.sqrt(gramian.diagonal())
        divisors = np.where(norms > 0, norms, 1.0) if self._by_length else np.ones_like(norms)
        blind = self._by_loss and not (context and context.losses)
        if self._by_loss and context and context.losses:
            divisors = divisors * self._losses(context)
        scaled = gramian / divisors / divisors[:, None]
        weights = min_norm_point(scaled)
        longest = float(weights @ (norms / divisors))
        gone = float(weights @ scaled @ weights) <= CANCELLED * longest**2
        return Solution(
            np.stack([weights, weights]) if self._weigh_heads else weights,
            "degenerate" if gone or blind else "converged",
        )

    def _losses(self, context: BalancerContext) -> Array:
        losses = np.array([context.losses[task] for task in context.present])
        wrong = [task for task, x in zip(context.present, losses, strict=True) if not x > 0]
        if wrong:
            raise MtlError(
                f"balancer mgda: the loss of {', '.join(wrong)} is not above 0, and gradients are "
                "divided by losses; choose another loss for it, or balancer.normalise = 'l2'"
            )
        return losses
