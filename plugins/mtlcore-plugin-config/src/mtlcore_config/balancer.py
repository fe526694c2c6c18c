"""ConFIG as a balancer."""

from __future__ import annotations

import numpy as np

from mtlcore.balancing import BalancerContext, Solution, SolvedBalancer
from mtlcore.balancing.solvers import Array, equal_angles, unit_diagonal, without_zeros


class ConFIG(SolvedBalancer):
    """Conflict-free inverse gradients (Liu, Chu & Thuerey, ICLR 2025, arXiv 2408.11104, eq. 2-3).

    The update has the same positive cosine with every task's gradient, and the length of their
    projections on it: with the unit gradients as rows of U,

        u = unit(U^+ 1),    d = (sum_i g_i . u) u.

    It is a function of the Gramian: with the cosines C and `C b = 1`, the weights are `b_i / |g_i|`
    times `sum_j |g_j| / sum b`. Its direction is that of IMTL-G, up to the sign, which is always
    that of descent here. Its length is at most `sum_i |g_i|`. Heads weigh 1.

    A task whose gradient is zero has the weight 0 and does not affect the others. With gradients
    such as opposite ones no direction has equal cosines, and the pseudo-inverse gives the nearest
    (least squares), which is zero for nothing but opposite ones. `status` is "degenerate" in both
    cases.
    """

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        return without_zeros(gramian, _conflict_free)


def _conflict_free(gramian: Array) -> Solution:
    cosines, norms = unit_diagonal(gramian)
    found = equal_angles(cosines)
    total = float(found.weights.sum())
    # |U' b|^2 = sum b: where nothing is left of the unit gradients, b is rounding.
    if not total > 1e-12:
        return Solution(np.zeros_like(norms), "degenerate")
    projections = float(norms @ (cosines @ found.weights))
    return Solution(found.weights / norms * (projections / total), found.status)
