"""PCGrad on the Gramian: which multiples of the task gradients the projections leave."""

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
    """Algorithm 1 of the paper, carried out on coefficients instead of gradients.

    Task i starts from `h = g_i` and visits the other tasks; at task j, where `h . g_j < 0`, it
    becomes `h - (h . g_j) / |g_j|^2 g_j`. The other side is always the original gradient, never one
    that was projected already. As `h = sum_k C[i, k] g_k`, a visit changes one coefficient, and all
    `h . g_k` follow from the Gramian. A task without a gradient conflicts with nobody.

    Plain numbers, as a network has few tasks: arrays this small cost more to call than to compute.

    Args:
        gramian: (K, K), entry i, j is `g_i . g_j`.
        orders: (K, K - 1), row i are the tasks that task i visits, in turn.

    Returns:
        C, (K, K): row i is what became of task i's gradient, in terms of the original ones.
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
    returns. With no conflict all weights are 1: the sum of the losses. Heads weigh 1.

    It has no state, and one object takes any number of tasks.

    Args:
        reduction: "sum" as in the paper, or "mean", which divides the shared update by K.
        order: "random" as in the paper, or "fixed", in which all visit the tasks as they are
            listed; the TensorFlow code of the authors does so.

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
        """(K, K) inner products of the task gradients -> (K,) float64 weights.

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
        """Row i is an order of all tasks but i."""
        if not self._random:
            return [[task for task in range(count) if task != i] for i in range(count)]
        device = "cpu" if generator is None else generator.device
        size, kind = (count, count - 1), torch.float64
        keys = torch.rand(size, generator=generator, dtype=kind, device=device)
        ranks: list[list[int]] = keys.argsort(dim=1).tolist()
        # Numbers from i on belong to the task after: nobody visits itself.
        return [[rank + (rank >= i) for rank in row] for i, row in enumerate(ranks)]
