"""CAGrad as a balancer."""

from __future__ import annotations

import math

import numpy as np

from mtlcore.balancing import BalancerContext, Solution, SolvedBalancer
from mtlcore.balancing.solvers import Array, cone_projection
from mtlcore.errors import UsageError
from mtlcore.ranges import ProperFraction
from mtlcore_cagrad.solver import worst_case


class CAGrad(SolvedBalancer):
    """Conflict-averse gradient descent (Liu et al., NeurIPS 2021, arXiv 2110.14048).

    Within a ball around the mean gradient `g_0`, the update raises the gain of the task that gains
    least (eq. 3):

        max over d of min_i g_i . d,    |d - g_0| <= c |g_0|.

    Its dual (Algorithm 1) has the solution `d = g_0 + c |g_0| g_w / |g_w|`, where `g_w` is the
    convex combination of the task gradients that minimises `g_w . g_0 + c |g_0| |g_w|`. It is
    solved to rounding, by active sets. Heads weigh 1.

    The update has the scale of the mean of the losses. With `rescale` it is multiplied by
    `K / (1 + c^2)`, as in the authors' code, which brings it to about that of their sum.

    Where `g_w` is zero, as where some gradients cancel or a task has none, the formula says
    nothing, and many updates are optimal. The nearest of them to `g_0` is taken, its projection
    onto the directions that no task opposes: `g_0` itself if it opposes none. Then `status` is
    "degenerate".

    Args:
        c: radius of the ball as a part of `|g_0|`, above 0 and below 1. 0.4 in the paper's
            experiments on NYUv2, 0.2 on Cityscapes.
        rescale: multiply the update by `K / (1 + c^2)`.

    Raises:
        UsageError: `c` is not between 0 and 1.
    """

    def __init__(self, *, c: ProperFraction = 0.4, rescale: bool = False) -> None:
        super().__init__()
        if not 0 < c < 1:
            raise UsageError(f"balancer.c: {c} is not between 0 and 1")
        self._c, self._rescale = c, rescale

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        count = len(gramian)
        found = self._mean_scale(gramian, np.full(count, 1.0 / count))
        factor = count / (1.0 + self._c**2) if self._rescale else 1.0
        return Solution(factor * found.weights, found.status)

    def _mean_scale(self, gramian: Array, average: Array) -> Solution:
        present = gramian.diagonal() > 0
        radius = self._c * math.sqrt(max(float(average @ gramian @ average), 0.0))
        best = None
        if present.any() and radius > 0:
            best = worst_case(gramian[np.ix_(present, present)], average[present], radius)
        # A gradient of zeros is a combination with the value 0.
        if best is None or (best[1] >= 0 and not present.all()):
            return Solution(cone_projection(gramian, average[None]).weights[0], "degenerate")
        w = np.zeros(len(gramian))
        w[present] = best[0]
        length = math.sqrt(float(w @ gramian @ w))
        weights = average + radius / length * w
        return Solution(weights, "converged" if present.all() else "degenerate")
