"""Balancers of Gramians: unit norm."""

from __future__ import annotations

import numpy as np

from mtlcore.balancing import Array, BalancerContext, Solution, SolvedBalancer


class UnitNorm(SolvedBalancer):
    """The sum of the task gradients, each scaled to length 1: weights `1 / |g_i|`.

    No method of a paper, but what many amount to where gradients are nearly orthogonal, such as
    Nash-MTL; comparisons need it beside them. The update does not depend on the scale of any loss;
    its length is `sqrt(K)` for orthogonal gradients and at most K. Heads weigh 1. A task whose
    gradient is zero weighs 0, and `status` is "degenerate".
    """

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        squares = gramian.diagonal()
        present = squares > 0
        weights = np.where(present, 1.0 / np.sqrt(np.where(present, squares, 1.0)), 0.0)
        return Solution(weights, "converged" if present.all() else "degenerate")
