"""Rows of several independent batches: what a balancer sees of them, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from mtlcore.balancing.answers import Weights, split_weights
from mtlcore.balancing.rows import Key


@final
class Batches:
    """The independent batches of one step, and which tasks have a row in which.

    A row holds the gradient of a task's mean loss in a batch, divided by the number of batches in
    which the task has labels. So the sum of a task's rows is its mean gradient.

    Args:
        found: What there are rows of.
        tasks: Those that have one, in order.
        count: Number of batches.

    Attributes:
        numbers: (K,) float64: in how many batches each task has labels.
        products: The Gramian of all rows, in the order of `keys`; set when they are complete.
    """

    products: Tensor

    def __init__(self, found: Iterable[Key], tasks: Sequence[str], count: int) -> None:
        self.tasks, self._count = tuple(tasks), count
        with_task = [task for task, _ in found]
        self.numbers = torch.tensor([with_task.count(task) for task in tasks]).double()

    @property
    def keys(self) -> list[Key]:
        """Every row there may be, in the order that the other methods expect."""
        return [(task, number) for number in range(self._count) for task in self.tasks]

    def gramian(self) -> Tensor:
        """Return the (K, K) Gramian of the mean gradients."""
        return self._blocks().sum((0, 2))

    def gramians(self) -> Tensor:
        """Return `BalancerContext.gramians`."""
        factors = self.numbers[:, None] * self.numbers
        return self._blocks().transpose(1, 2) * factors

    def split(self, answer: Tensor) -> tuple[Weights, Weights]:
        """Return what a balancer's answer means: weights of all rows, and in sum of the tasks."""
        if answer.dim() == 3:
            rows = (answer * self.numbers).transpose(0, 1).flatten(1)
            return split_weights(rows), split_weights(answer.sum(0))
        shared, heads = split_weights(answer)
        return (shared * self._count, heads * self._count), (shared, heads)

    def _blocks(self) -> Tensor:
        return self.products.view(self._count, len(self.tasks), self._count, len(self.tasks))
