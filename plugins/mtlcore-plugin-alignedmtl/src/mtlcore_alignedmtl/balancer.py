"""Aligned-MTL as a balancer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from mtlcore.balancing import BalancerContext, Scope, Solution, SolvedBalancer
from mtlcore.balancing.solvers import Array, above_rounding, unit_diagonal
from mtlcore.errors import UsageError

_SCALES: dict[str, Callable[[Array], float]] = {
    "min": lambda lengths: float(lengths.min()),
    "median": lambda lengths: float(np.sort(lengths)[(len(lengths) - 1) // 2]),
    "rmse": lambda lengths: float(np.sqrt(np.mean(lengths**2))),
}


# Squared singular values this small, relative to the largest, keep twelve digits in a Gramian.
_WELL_CONDITIONED = 1e-3


class AlignedMTL(SolvedBalancer):
    """Independent component alignment (Senushkin et al., CVPR 2023, arXiv 2305.19000, eq. 11-13).

    The system of task gradients is replaced by the nearest one whose principal components are
    orthogonal and of equal length: with the singular value decomposition `G = U S V'` of the
    matrix of gradients, the aligned gradients are the rows of `s U V'`, and the update is their
    sum. In the gradients themselves, with `M = G G' = U S^2 U'`, the weights are

        w = s U S^-1 U' 1.

    Its length is at most `s sqrt(K)`, whatever the gradients. The scale s is the smallest singular
    value: the longest such system along which no component is amplified. Heads weigh 1.

    Where components of very different lengths make the Gramian lose digits, they are found from a
    factor of the matrix of cosines. Where gradients depend on one another, those components that
    are zero are left out, as in the authors' code, and `status` is "degenerate". A task whose
    gradient is zero has the weight 0.

    Args:
        scale: which singular value s is: "min", the smallest as in the paper; "median", the lower
            one of an even number; "rmse", the root of the mean of their squares.
        reduction: "sum" of the aligned gradients, as in the authors' code, or "mean", as in the
            paper.
        scope: "shared", the gradients of all shared parameters, or "features" (Aligned-MTL-UB),
            those of the maps that heads read.

    Raises:
        UsageError: a setting has another value.
    """

    def __init__(
        self,
        *,
        scale: Literal["min", "median", "rmse"] = "min",
        reduction: Literal["sum", "mean"] = "sum",
        scope: Literal["shared", "features"] = "shared",
    ) -> None:
        super().__init__()
        if scale not in _SCALES:
            raise UsageError(f"balancer.scale: {scale!r} is none of 'min', 'median' and 'rmse'")
        if reduction not in ("sum", "mean"):
            raise UsageError(f"balancer.reduction: {reduction!r} is neither 'sum' nor 'mean'")
        if scope not in ("shared", "features"):
            raise UsageError(f"balancer.scope: {scope!r} is neither 'shared' nor 'features'")
        self._scale, self._mean = _SCALES[scale], reduction == "mean"
        self.scope: Scope = scope

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        squares, vectors = np.linalg.eigh(gramian)
        if squares[0] > _WELL_CONDITIONED * squares[-1]:
            found = Solution(self._sum(np.sqrt(squares), vectors), "converged")
        else:
            found = self._of_cosines(gramian)
        return Solution(found.weights / len(gramian), found.status) if self._mean else found

    def _of_cosines(self, gramian: Array) -> Solution:
        """Solve where the Gramian itself has lost the digits of its short components."""
        cosines, norms = unit_diagonal(gramian)
        # Longest first: an SVD of graded rows keeps the digits of the short ones.
        order = np.argsort(-norms, kind="stable")[: int(np.count_nonzero(norms))]
        values, vectors = np.linalg.eigh(cosines[np.ix_(order, order)])
        kept = above_rounding(values)
        weights = np.zeros(len(norms))
        if kept.any():
            factor = norms[order, None] * vectors[:, kept] * np.sqrt(values[kept])
            # Weights do not see the other factor.
            triangle: Array = np.asarray(np.linalg.qr(factor.T, mode="r"))
            left, lengths, _ = np.linalg.svd(triangle.T, full_matrices=False)
            weights[order] = self._sum(lengths, left)
        whole = int(np.count_nonzero(kept)) == len(norms)
        return Solution(weights, "converged" if whole else "degenerate")

    def _sum(self, lengths: Array, left: Array) -> Array:
        """Return the weights `s U S^-1 U' 1`, given S, and the columns of U."""
        weights: Array = self._scale(lengths) * (left @ (left.sum(axis=0) / lengths))
        return weights
