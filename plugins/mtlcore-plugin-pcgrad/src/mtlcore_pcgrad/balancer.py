"""PCGrad, computed on the Gramian of the task gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GramianBalancer
from mtlcore.errors import UsageError

Matrix = Sequence[Sequence[float]]
Orders = Sequence[Sequence[int]]


def project(gramian: Matrix, orders: Orders) -> list[list[float]]:
    """Carry out Algorithm 1 of the paper on coefficients instead of gradients.

    Task i starts from `h = g_i` and visits the other tasks; at task j, where `h . g_j < 0`, it
    becomes `h - (h . g_j) / |g_j|^2 g_j`. The other side is always the original gradient, never one
    that was projected already. As `h = sum_k C[i, k] g_k`, a visit changes one coefficient, and all
    `h . g_k` follow from the Gramian. A task whose gradient is zero conflicts with no other.

    It works on Python numbers: for so few tasks, calls of array functions would take longer.

    Args:
        gramian: (K, K), entry i, j is `g_i . g_j`.
        orders: (K, K - 1); row i lists the tasks that task i visits, in their order.

    Returns:
        C, (K, K): row i holds the coefficients of the projected gradient of task i.
    """
    coefficients = []
    for task, visited in enumerate(orders):
        mine, products = [0.0] * len(gramian), gramian[task]  # products[k] is h . g_k
        mine[task] = 1.0
        for other in visited:
            if products[other] < 0 < gramian[other][other]:
                step = products[other] / gramian[other][other]
                mine[other] -= step
                products = [h - step * g for h, g in zip(products, gramian[other], strict=True)]
        coefficients.append(mine)
    return coefficients


class PCGrad(GramianBalancer):
    """Projecting conflicting gradients (Yu et al. 2020, arXiv 2001.06782, Algorithm 1).

    Each task's gradient is projected, one after another, onto the normal plane of every other
    task's original gradient that it conflicts with at that moment; the update is the sum of what
    remains. The outcome depends on the order of the visits, which the paper draws at random, anew
    for each task and each step. Weights are the column sums of the coefficients that `project`
    returns. Without a conflict all weights are 1, as in the sum of the losses. Heads have the
    weight 1.

    It has no state, and one object takes any number of tasks.

    Args:
        reduction: "sum" as in the paper, or "mean", which divides the shared update by K.
        order: "random" as in the paper, or "fixed", the order in which the tasks are listed, as in
            the authors' TensorFlow code.

    Raises:
        UsageError: a setting has another value.
    """

    affine = False

    def __init__(
        self,
        *,
        reduction: Literal["sum", "mean"] = "sum",
        order: Literal["random", "fixed"] = "random",
    ) -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise UsageError(f"balancer.reduction: {reduction!r} is neither 'sum' nor 'mean'")
        if order not in ("random", "fixed"):
            raise UsageError(f"balancer.order: {order!r} is neither 'random' nor 'fixed'")
        self._mean, self._random = reduction == "mean", order == "random"

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the (K,) float64 weights for the (K, K) inner products of the task gradients.

        Raises:
            ValueError: the Gramian is not square or not finite.
        """
        if gramian.dim() != 2 or gramian.shape[0] != gramian.shape[1]:
            raise ValueError(f"a Gramian is (K, K), not {tuple(gramian.shape)}")
        entries: list[list[float]] = gramian.tolist()
        if not all(map(math.isfinite, chain(*entries))):
            raise ValueError("the Gramian is not finite")
        coefficients = project(entries, self._orders(len(entries), self.random(context)))
        sums = [sum(column) for column in zip(*coefficients, strict=True)]
        weights = torch.tensor(sums, dtype=torch.float64)
        return weights / len(entries) if self._mean else weights

    def _orders(self, count: int, generator: torch.Generator | None) -> Orders:
        """Return an order of all other tasks for each task."""
        if not self._random:
            return [[task for task in range(count) if task != i] for i in range(count)]
        device = "cpu" if generator is None else generator.device
        size, kind = (count, count - 1), torch.float64
        keys = torch.rand(size, generator=generator, dtype=kind, device=device)
        ranks: list[list[int]] = keys.argsort(dim=1).tolist()
        # Numbers from i on belong to the task after: nobody visits itself.
        return [[rank + (rank >= i) for rank in row] for i, row in enumerate(ranks)]
