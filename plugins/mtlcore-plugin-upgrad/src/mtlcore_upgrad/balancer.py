"""UPGrad and the dual projection as balancers."""

from __future__ import annotations

import abc
from typing import Literal, final

import numpy as np

from mtlcore.balancing import BalancerContext, Solution, SolvedBalancer
from mtlcore.balancing.solvers import Array, cone_projection
from mtlcore.errors import UsageError

Reduction = Literal["mean", "sum"]


class _Projected(SolvedBalancer, abc.ABC):
    def __init__(self, reduction: Reduction) -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise UsageError(f"balancer.reduction: {reduction!r} is neither 'mean' nor 'sum'")
        self._sum = reduction == "sum"

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        found = cone_projection(gramian, self._targets(len(gramian)))
        weights = found.weights.mean(axis=0)
        return Solution(len(gramian) * weights if self._sum else weights, found.status)

    @abc.abstractmethod
    def _targets(self, count: int) -> Array: ...


@final
class UPGrad(_Projected):
    """Unconflicting projections of gradients (Quinton & Rey 2024, arXiv 2406.16232, eq. 3).

    Each task's gradient is projected onto the cone of the directions that no task opposes,
    `{d : d . g_i >= 0 for all i}`, and the update is the mean of the projections. So no task's loss
    rises along it, and where gradients do not conflict it is their mean. Projections are solved
    exactly, by active sets (`mtlcore.balancing.solvers.cone_projection`). Heads weigh 1.

    Zero, equal and opposite gradients need no special care: a projection is unique, and that of
    opposite ones is zero. A gradient of zeros restricts nothing.

    Args:
        reduction: "mean" as in the paper, or "sum", the scale of the sum of the losses.

    Raises:
        UsageError: `reduction` has another value.
    """

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)

    def _targets(self, count: int) -> Array:
        return np.eye(count)


@final
class DualProj(_Projected):
    """Projection of the mean gradient (GEM; Lopez-Paz & Ranzato, NeurIPS 2017, arXiv 1706.08840).

    The update is the direction nearest to the mean gradient that no task opposes,
    `{d : d . g_i >= 0 for all i}`; the paper projects the gradient of a new task so that losses on
    earlier ones do not rise. It adds a margin to the weights, which is left out here. The
    projection is exact, as that of `UPGrad`, which projects each gradient by itself. Heads weigh 1.

    Args:
        reduction: "mean", or "sum", the scale of the sum of the losses.

    Raises:
        UsageError: `reduction` has another value.
    """

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)

    def _targets(self, count: int) -> Array:
        return np.full((1, count), 1.0 / count)
