"""The validation batch of a step: its gradients are compared with the rows, and nobody learns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing.answers import Weights
from mtlcore.balancing.graphs import gradients
from mtlcore.balancing.products import Row, own_products
from mtlcore.balancing.rows import Key, SharedRows, added, scaled
from mtlcore.distributed import Distributed

# Computes losses whose sum per task is that of the validation batch, in as many parts as one likes.
ValidationLosses = Callable[[], Iterable[Mapping[str, Tensor]]]


class NotFinite(Exception):
    """The gradient of the validation batch is not finite, and the step must be skipped."""


@final
class LookAhead:
    """Compares the rows of a step with gradients of its validation batch; a `ValidationProducts`.

    Args:
        losses: Of the validation batch.
        scale: The factor on these losses.
        rows: Of the shared parameters, summed over all ranks.
        own_rows: Gradients of this rank at parameters of single tasks.
        shared: The parameters of the rows.
        own: Per task, the parameters of its own.
        split: What a balancer's answer means: weights of all rows, and of the tasks.
        distributed: The processes that each have a part of every batch.
    """

    def __init__(
        self,
        losses: ValidationLosses,
        scale: float,
        rows: SharedRows,
        own_rows: Mapping[Key, Row],
        shared: Sequence[Parameter],
        own: Mapping[str, Sequence[Parameter]],
        split: Callable[[Tensor], tuple[Weights, Weights]],
        distributed: Distributed,
    ) -> None:
        self._losses, self._scale, self._rows = losses, scale, rows
        self._shared, self._own, self._split = shared, own, split
        self._distributed = distributed
        self._tasks = list(dict.fromkeys(task for task, _ in rows.keys))
        self._own_rows = self._summed(
            {key: own_rows.get(key, [None] * len(own[key[0]])) for key in rows.keys}
        )

    def __call__(self, weights: Tensor | None = None, rate: float = 0.0) -> tuple[Tensor, Tensor]:
        step = [] if weights is None or rate == 0 else self._step(weights)
        with _moved(step, rate):
            rows, own_rows = self._gradients()
        count = len(self._tasks)
        # In sum over independent batches, the rows of a task are its mean gradient.
        products = self._rows.products(rows).view(-1, count, count).sum(0) / self._scale
        keys = self._rows.keys
        own = own_products(
            [self._own_rows[key] for key in keys], [own_rows[task, 0] for task, _ in keys]
        )
        own = own.view(-1, count).sum(0) / self._scale
        if not bool(products.isfinite().all() and own.isfinite().all()):
            raise NotFinite
        return products, own

    def _step(self, weights: Tensor) -> list[tuple[Parameter, Tensor]]:
        """Return parameters with the gradients that these weights make of the rows."""
        (shared, heads), _ = self._split(weights)
        step = [*zip(self._shared, self._rows.direction(shared, keep=True), strict=True)]
        for (key, row), weight in zip(self._own_rows.items(), heads, strict=True):
            step += zip(self._own[key[0]], scaled(row, weight), strict=True)
        return [(parameter, gradient) for parameter, gradient in step if gradient is not None]

    def _gradients(self) -> tuple[SharedRows, dict[Key, Row]]:
        """Return the gradients of the validation losses, of all ranks together."""
        rows = SharedRows(self._shared, len(self._tasks))
        own_rows: dict[Key, Row] = {}
        for part in self._losses():
            terms = [((task, 0), part[task]) for task in self._tasks if task in part]
            for number, (key, loss) in enumerate(terms, 1):
                parameters = [*self._shared, *self._own[key[0]]]
                found = gradients(loss, parameters, number < len(terms))
                row, rest = found[: len(self._shared)], found[len(self._shared) :]
                rows.add(key, row, rest)
                before = own_rows.get(key)
                own_rows[key] = rest if before is None else added(before, rest)
        rows.arrange([(task, 0) for task in self._tasks])
        for task in self._tasks:
            own_rows.setdefault((task, 0), [None] * len(self._own[task]))
        if self._distributed.world_size > 1:
            rows.sum_over(self._distributed)
        return rows, self._summed({(task, 0): own_rows[task, 0] for task in self._tasks})

    def _summed(self, rows: dict[Key, Row]) -> dict[Key, Row]:
        """Add up rows of all ranks at parameters of single tasks; those of this rank stay."""
        if self._distributed.world_size == 1:
            return rows
        cells = [(key, place) for key, row in rows.items() for place in range(len(row))]
        anywhere = self._distributed.any_of([rows[key][place] is not None for key, place in cells])
        result: dict[Key, list[Tensor | None]] = {k: [None] * len(row) for k, row in rows.items()}
        held = []
        for (key, place), found in zip(cells, anywhere, strict=True):
            if found:
                mine = rows[key][place]
                empty = torch.zeros_like(self._own[key[0]][place], requires_grad=False)
                copy = empty if mine is None else mine.clone()
                result[key][place] = copy
                held.append(copy)
        self._distributed.all_reduce(held)
        return {**result}


@contextmanager
def _moved(step: Sequence[tuple[Parameter, Tensor]], rate: float) -> Iterator[None]:
    """Take a gradient step for a while: afterwards the parameters are what they were, bit for bit.

    Args:
        step: Parameters with the gradients that they are moved against; several of a parameter
            add up.
        rate: The learning rate.
    """
    before = {id(p): (p, p.detach().clone()) for p, _ in step}
    try:
        with torch.no_grad():
            for parameter, gradient in step:
                parameter.sub_(gradient, alpha=rate)
        yield
    finally:
        with torch.no_grad():
            for parameter, kept in before.values():
                parameter.copy_(kept)
