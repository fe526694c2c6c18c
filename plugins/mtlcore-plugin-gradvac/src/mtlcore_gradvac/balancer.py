"""GradVac on the Gramian of the task gradients, of the whole trunk or of each parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from mtlcore.balancing import (
    BalancerContext,
    GradientBalancer,
    GramianBalancer,
    RowBalancer,
    Tentative,
)
from mtlcore.balancing.solvers import CANCELLED, as_gramian
from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.ranges import Fraction
from mtlcore.tasks import Task

Matrix = Sequence[Sequence[float]]
Orders = Sequence[Sequence[int]]

# Cosines of gradients in float32 are known no better; nearer to 1, a step would have no bound.
_LARGEST_TARGET = 1.0 - CANCELLED


def vaccinate(
    gramian: Matrix, orders: Orders, targets: Matrix, beta: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Carry out the paper's algorithm on coefficients instead of gradients.

    Task i starts from `h = g_i` and visits the other tasks; at task j, where the cosine c of h and
    `g_j` is below its target t, it becomes

        h + |h| (t sqrt(1 - c^2) - c sqrt(1 - t^2)) / (|g_j| sqrt(1 - t^2)) g_j,

    whose cosine with `g_j` is t. The other side is always the original gradient. Each visit moves
    the target by `beta` towards c. A task whose gradient is zero, or has become so, is not visited
    and visits nobody.

    Args:
        gramian: (K, K), entry i, j is `g_i . g_j`.
        orders: (K, K - 1); row i lists the tasks that task i visits, in their order.
        targets: (K, K), of task i at task j.
        beta: How far targets move.

    Returns:
        C, (K, K), whose row i holds the coefficients of task i's changed gradient; and the targets
        after this step, (K, K).
    """
    norms = [math.sqrt(max(row[task], 0.0)) for task, row in enumerate(gramian)]
    coefficients, moved = [], [list(row) for row in targets]
    for task, visited in enumerate(orders):
        mine, products = [0.0] * len(gramian), gramian[task]  # products[k] is h . g_k
        mine[task], square = 1.0, gramian[task][task]
        for other in visited:
            if norms[other] <= 0 or square <= CANCELLED * gramian[task][task]:
                continue
            length = math.sqrt(square)
            cosine = min(max(products[other] / length / norms[other], -1.0), 1.0)
            target = min(targets[task][other], _LARGEST_TARGET)
            if cosine < target:
                across, wanted = math.sqrt(1 - cosine * cosine), math.sqrt(1 - target * target)
                step = length * (target * across / wanted - cosine) / norms[other]
                mine[other] += step
                products = [h + step * g for h, g in zip(products, gramian[other], strict=True)]
                # What is orthogonal to the other gradient stays.
                square *= (across / wanted) ** 2
            moved[task][other] += beta * (cosine - targets[task][other])
        coefficients.append(mine)
    return coefficients, moved


def random_orders(count: int, generator: torch.Generator | None) -> Orders:
    """Draw an order of all other tasks for each of `count` tasks."""
    device = "cpu" if generator is None else generator.device
    keys = torch.rand((count, count - 1), generator=generator, dtype=torch.float64, device=device)
    ranks: list[list[int]] = keys.argsort(dim=1).tolist()
    # Numbers from i on belong to the task after: nobody visits itself.
    return [[rank + (rank >= i) for rank in row] for i, row in enumerate(ranks)]


@final
class Targets(nn.Module):
    """Target cosines of each two tasks, 0 at first, for the whole trunk or for each parameter."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []
        self.values = Tentative()

    def prepare(self, tasks: Iterable[str]) -> None:
        """Make room for tasks; those that are known stay where they are."""
        self._names += [task for task in tasks if task not in self._names]

    def get(self, key: str, tasks: Sequence[str]) -> list[list[float]]:
        """Return the targets of these tasks, (K, K), at the place of that key."""
        found = self._all(key)
        numbers = self._numbers(tasks)
        return [[float(found[i, j]) for j in numbers] for i in numbers]

    def propose(self, key: str, tasks: Sequence[str], moved: Matrix) -> None:
        """Keep targets of these tasks if the step is taken."""
        found, numbers = self._all(key), torch.tensor(self._numbers(tasks))
        found[numbers[:, None], numbers] = torch.tensor(moved, dtype=found.dtype)
        self.values.propose(key, found)

    def _numbers(self, tasks: Sequence[str]) -> list[int]:
        return [self._names.index(task) for task in tasks]

    def _all(self, key: str) -> Tensor:
        """(N, N) for all known tasks, in memory of its own."""
        found = torch.zeros(len(self._names), len(self._names), dtype=torch.float64)
        kept = self.values.get(key, like=found)
        if kept is not None:  # of fewer tasks, where some have joined
            found[: len(kept), : len(kept)] = kept
        return found

    def get_extra_state(self) -> dict[str, Any]:
        return {"tasks": self._names}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        names = self._names
        self._names = list(state["tasks"])
        self.prepare(names)


class GradVac(GramianBalancer):
    """Gradient vaccine of whole gradients (Wang et al., ICLR 2021, arXiv 2010.05874).

    See `gradvac`, which makes it.

    Args:
        beta: how fast target cosines follow measured ones.
    """

    affine = False

    def __init__(self, *, beta: Fraction = 0.01) -> None:
        super().__init__()
        self._beta = beta
        self.targets = Targets()

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        self.targets.prepare(task.name for task in tasks)

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the (K,) float64 weights for the (K, K) inner products of the task gradients.

        Raises:
            ValueError: the Gramian is not square or not finite.
        """
        return _weights(gramian, context, self, self.targets, "whole", self._beta)

    def after_step(self, context: BalancerContext) -> None:
        self.targets.values.commit()

    def reset(self) -> None:
        self.targets.values.reset()


class LayerGradVac(GradientBalancer):
    """Gradient vaccine of each parameter by itself (Wang et al., ICLR 2021, arXiv 2010.05874).

    See `gradvac`, which makes it.

    Args:
        beta: how fast target cosines follow measured ones.
    """

    affine = False
    granularity = "parameter"

    def __init__(self, *, beta: Fraction = 0.01) -> None:
        super().__init__()
        self._beta = beta
        self.targets = Targets()

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        self.targets.prepare(task.name for task in tasks)

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the (P,) update for the (K, P) task gradients of one parameter."""
        wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        gramian = (wide @ wide.T).double().cpu()
        place = None if context is None else context.place
        key = "whole" if place is None else str(place.number)
        weights = _weights(gramian, context, self, self.targets, key, self._beta)
        return torch.mv(wide.T, weights.to(wide)).to(rows.dtype)

    def after_step(self, context: BalancerContext) -> None:
        self.targets.values.commit()

    def reset(self) -> None:
        self.targets.values.reset()


def _weights(
    gramian: Tensor,
    context: BalancerContext | None,
    balancer: RowBalancer,
    targets: Targets,
    key: str,
    beta: float,
) -> Tensor:
    """Return the (K,) sums of the coefficients, and propose the targets of the next step."""
    entries: list[list[float]] = as_gramian(gramian).tolist()
    orders = random_orders(len(entries), balancer.random(context))
    if context is None:
        known: list[list[float]] = [[0.0] * len(entries) for _ in entries]
    else:
        known = targets.get(key, context.present)
    coefficients, moved = vaccinate(entries, orders, known, beta)
    if context is not None:
        targets.propose(key, context.present, moved)
    sums = [sum(column) for column in zip(*coefficients, strict=True)]
    return torch.tensor(sums, dtype=torch.float64)


def gradvac(
    *, beta: Fraction = 0.01, granularity: Literal["whole", "parameter"] = "whole"
) -> RowBalancer:
    """Gradient vaccine (Wang et al., ICLR 2021, arXiv 2010.05874): cosines have targets.

    Where PCGrad only acts on negative cosines, here each two tasks have a target, the running mean
    of their cosine: where the measured one is below, as much of the other task's original gradient
    is added as makes them equal. Each task visits the others in an order drawn anew in each step,
    and the target of i at j is moved towards the cosine at that visit, of i's gradient as it then
    is. Targets begin at 0, as PCGrad's stay. The update is the sum of the changed gradients; heads
    weigh 1.

    An absent task leaves the targets as they are. A task without a gradient is neither changed nor
    visited. Without a context all targets are 0, and nothing is kept.

    Args:
        beta: how fast target cosines follow measured ones.
        granularity: "whole", one cosine for the gradients of all shared parameters; or "parameter",
            a cosine and a target for each of them.

    Raises:
        UsageError: a setting is out of its range.
    """
    if not 0 <= beta <= 1:
        raise UsageError(f"balancer.beta: {beta} is not from 0 to 1")
    if granularity not in ("whole", "parameter"):
        raise UsageError(
            f"balancer.granularity: {granularity!r} is neither 'whole' nor 'parameter'"
        )
    return GradVac(beta=beta) if granularity == "whole" else LayerGradVac(beta=beta)
