"""Nash-MTL as a balancer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GramianBalancer, Status
from mtlcore.errors import UsageError
from mtlcore.ranges import Positive
from mtlcore_nashmtl.solver import Array, bargain


class NashMTL(GramianBalancer):
    """Multi-task learning as a bargaining game (Navon et al. 2022, arXiv 2202.01017).

    The update `d = sum_i a_i g_i` has the positive weights that solve `M a = 1 / a` for the Gramian
    `M_ij = g_i . g_j` (Claim 3.1): all tasks gain the same, `a_i g_i . d = 1`. So `|d|^2 = K`
    whatever the gradients are, and if a task's loss is multiplied by c, its weight is divided by c.

    Newton's method (`mtlcore_nashmtl.solver`) solves the equation to rounding, from the same
    starting point each time: the weights depend on M alone, and there is no state. The published
    code approximates them by at most 20 convex programs, which start from the last step's weights;
    where it fails, it keeps these. If task gradients cancel, as opposite ones do, there is no
    solution. Then `status` is "degenerate", the update is orthogonal to the gradients of those
    tasks, and the others bargain over what is left. A task whose gradient is zero has the weight 0
    and does not affect the others; that is "degenerate" too.

    By default the update is not clipped, and heads have the weight 1. The method `nashmtl` sets the
    published values instead: the weights multiply the losses, and thus the gradients of heads too,
    and the shared update is clipped to a norm of 1 (before, its norm is `sqrt(K)`).

    Args:
        max_norm: largest norm of the shared update; unset: no limit.
        weigh_heads: whether parameters of a single task, such as its head, are weighted by `a` too
            (not clipped). A task without a solution gets `1 / |g_i|`, its weight if it were alone,
            and 1 if its gradient is zero.

    Raises:
        UsageError: `max_norm` is not above 0.
    """

    affine = False

    def __init__(self, *, max_norm: Positive | None = None, weigh_heads: bool = False) -> None:
        super().__init__()
        if max_norm is not None and not max_norm > 0:
            raise UsageError(f"balancer.max_norm: {max_norm} is not above 0")
        self._max_norm, self._weigh_heads = max_norm, weigh_heads
        self._status: Status = "converged"

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the weights for the (K, K) inner products of the task gradients.

        Returns:
            (K,) float64; with `weigh_heads` (2, K), whose second row holds those of the heads.

        Raises:
            ValueError: the Gramian is not square or not finite.
        """
        if gramian.dim() != 2 or gramian.shape[0] != gramian.shape[1]:
            raise ValueError(f"a Gramian is (K, K), not {tuple(gramian.shape)}")
        products: Array = gramian.detach().to("cpu", torch.float64).numpy()
        if not np.isfinite(products).all():
            self._status = "not finite"
            raise ValueError("the Gramian is not finite")
        agreed = bargain(products)
        self._status = "converged" if agreed.solved else "degenerate"
        weights = agreed.weights
        if self._max_norm is not None and agreed.norm > self._max_norm:
            weights = weights * (self._max_norm / agreed.norm)
        if self._weigh_heads:
            weights = np.stack([weights, agreed.importance])
        return torch.from_numpy(weights)

    @property
    def status(self) -> Status:
        """How the last call ended; "degenerate" if no weights solve the equation for all tasks."""
        return self._status
