"""Balancers of Gramians: unit norm."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mtlcore.balancing import Array, BalancerContext, Scope, Solution, SolvedBalancer
from mtlcore.errors import UsageError


class UnitNorm(SolvedBalancer):
    """The sum of the task gradients, each scaled to length 1: weights `1 / |g_i|`.

    No method of a paper, but what many amount to where gradients are nearly orthogonal, such as
    Nash-MTL; comparisons need it beside them. The update does not depend on the scale of any loss;
    its length is `sqrt(K)` for orthogonal gradients and at most K. Heads weigh 1. A task whose
    gradient is zero weighs 0, and `status` is "degenerate".

    Args:
        scope: "shared", or "features", where tasks cost a backward pass through their heads only.

    Raises:
        UsageError: the scope is neither.
    """

    def __init__(self, *, scope: Literal["shared", "features"] = "shared") -> None:
        super().__init__()
        if scope not in ("shared", "features"):
            raise UsageError(f"balancer.scope: {scope!r} is neither 'shared' nor 'features'")
        self.scope: Scope = scope

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        squares = gramian.diagonal()
        present = squares > 0
        weights = np.where(present, 1.0 / np.sqrt(np.where(present, squares, 1.0)), 0.0)
        return Solution(weights, "converged" if present.all() else "degenerate")
