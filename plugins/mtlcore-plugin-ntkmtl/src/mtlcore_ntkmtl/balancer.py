"""NTKMTL as a balancer of Gramians."""

from __future__ import annotations

import math

import numpy as np

from mtlcore.balancing import BalancerContext, Solution, SolvedBalancer
from mtlcore.balancing.solvers import Array
from mtlcore.errors import UsageError
from mtlcore.ranges import Count, NonNegative, Positive


class NTKMTL(SolvedBalancer):
    """Weights from the neural tangent kernel (Qin et al., NeurIPS 2025, arXiv 2510.18258).

    A task learns as fast as the largest eigenvalue lambda_i of its kernel says, the (n, n) matrix
    of the inner products of its gradients in n batches, and is weighed against that:

        w_i = (sum_j lambda_j / lambda_i)^p,    d = sum_i w_i g_i.

    With one batch and p = 1/2 that is `sqrt(sum_j |g_j|^2) / |g_i|`: unit gradients, times one
    factor. With n batches (`batches`) lambda_i is that eigenvalue divided by the number of batches
    with labels of the task, and the mean gradients are weighed; the authors cut one batch into n
    parts. Heads weigh 1.

    The update has the scale of the sum of the losses where gradients are of one length, times
    K^p. A task whose gradient is zero weighs 0, and `status` is "degenerate".

    Args:
        exponent: p; 0.5, or 0.75 in the authors' script for NYUv2.
        batches: n, independent batches of a step; `training.batch_size` counts for each.
        rescale: multiply the update by the number of tasks, as in the authors' code.
        max_norm: largest norm of the shared update, after rescaling; unset: no limit.

    Raises:
        UsageError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        exponent: NonNegative = 0.5,
        batches: Count = 1,
        rescale: bool = False,
        max_norm: Positive | None = None,
    ) -> None:
        super().__init__()
        if not exponent >= 0:
            raise UsageError(f"balancer.exponent: {exponent} is below 0")
        if batches < 1:
            raise UsageError(f"balancer.batches: {batches} is not a number of batches")
        if max_norm is not None and not max_norm > 0:
            raise UsageError(f"balancer.max_norm: {max_norm} is not above 0")
        self._exponent, self.batches = exponent, batches
        self._rescale, self._max_norm = rescale, max_norm

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        """Return the weights.

        Raises:
            UsageError: There should be several batches, and no context tells of them.
        """
        rates = self._rates(gramian, context)
        # In units of the largest, so that no sum overflows.
        shares = rates / max(float(rates.max()), np.finfo(np.float64).tiny)
        present = shares > 0
        ratios = shares.sum() / np.where(present, shares, 1.0)
        weights = np.where(present, ratios**self._exponent, 0.0)
        if self._rescale:
            weights *= len(weights)
        norm = math.sqrt(max(float(weights @ gramian @ weights), 0.0))
        if self._max_norm is not None and norm > self._max_norm:
            weights *= self._max_norm / norm
        return Solution(weights, "converged" if present.all() else "degenerate")

    def _rates(self, gramian: Array, context: BalancerContext | None) -> Array:
        """(K,) largest eigenvalues of the tasks' kernels; 0 without a gradient."""
        if self.batches == 1:
            return np.asarray(gramian.diagonal())
        if context is None or context.gramians is None:
            raise UsageError(
                "balancer ntkmtl: several batches are compared in a step of training only; outside "
                "of one, set balancer.batches = 1"
            )
        # (K, n, n): each task's gradients in the batches.
        kernels = np.einsum("abkk->kab", context.gramians.numpy())
        found = (np.einsum("kaa->ka", kernels) > 0).sum(1)
        return np.asarray(np.linalg.eigvalsh(kernels)[:, -1] / np.maximum(found, 1))
