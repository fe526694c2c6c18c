"""Nash-MTL as a balancer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GramianBalancer, Status
from mtlcore.errors import UsageError
from mtlcore_nashmtl.solver import Array, bargain


class NashMTL(GramianBalancer):
    """Multi-task learning as a bargaining game (Navon et al. 2022, arXiv 2202.01017).

    The update `d = sum_i a_i g_i` has the positive weights that solve `M a = 1 / a` for the Gramian
    `M_ij = g_i . g_j` (Claim 3.1): every task gains alike, `a_i g_i . d = 1`. So `|d|^2 = K`
    whatever the gradients, and a task whose loss is scaled by c gets its weight divided by c.

    The equation is solved to rounding by Newton's method (`mtlcore_nashmtl.solver`), from the same
    start each time: the answer depends on M alone, and there is no state. The published code
    approaches it by at most 20 convex programs that start at the last step's weights; where it
    fails it keeps these. Where task gradients cancel, as opposite ones do, nobody can solve it;
    `status` is "degenerate" then, the update leaves those tasks alone, and the others bargain over
    what is orthogonal to them. A task without a gradient weighs 0 and the others do not notice it:
    degenerate as well.

    By default the update is not clipped and heads weigh 1. The method `nashmtl` sets the published
    values instead: there the weights multiply the losses, and thus heads, and the shared update is
    clipped to a norm of 1, which, as its norm is `sqrt(K)`, it always has.

    Args:
        max_norm: shrink the shared update to this norm where it is longer; None: leave it as it is.
        weigh_heads: weigh what belongs to one task alone, such as its head, with `a` too, not
            clipped; where a task has no solution, with `1 / |g_i|`, as if it were alone, and with 1
            where it has no gradient.

    Raises:
        UsageError: `max_norm` is not above 0.
    """

    affine = False

    def __init__(self, *, max_norm: float | None = None, weigh_heads: bool = False) -> None:
        super().__init__()
        if max_norm is not None and not max_norm > 0:
            raise UsageError(f"balancer.max_norm: {max_norm} is not above 0")
        self._max_norm, self._weigh_heads = max_norm, weigh_heads
        self._status: Status = "converged"

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """(K, K) inner products of the task gradients -> float64 weights.

        Returns:
            (K,), or (2, K) with the weights of heads in the second row where they are weighed.

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
        """How the last call ended; "degenerate" where no weights solve the equation for all."""
        return self._status
