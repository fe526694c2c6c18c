"""The gradients of the tasks: collected as rows, balanced, and written to `.grad`.

No other code divides, scales or writes gradients for a balancer. A step collects what its kind of
balancing needs (a sum, rows or a weighted sum) from one or more batches, and applies it once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing.answers import cosines, split_weights
from mtlcore.balancing.context import BalancerContext, BalancingResult, Scope, Status
from mtlcore.balancing.cut import Cut
from mtlcore.balancing.finite import all_finite
from mtlcore.balancing.graphs import gradients, learning, refuse_sparse
from mtlcore.balancing.rows import Row, SharedRows, added, scaled
from mtlcore.balancing.writing import gathered, write
from mtlcore.distributed import SINGLE_PROCESS, Distributed
from mtlcore.errors import UsageError
from mtlcore.features import Boundary

__all__ = [
    "MISSING",
    "Decider",
    "TaskGradients",
]


class Decider(Protocol):
    """Turns rows into an update: a balancer of task gradients."""

    def decide(self, gradients: TaskGradients, context: BalancerContext) -> BalancingResult:
        """Call `weigh` or `combine`, once."""


class TaskGradients:
    """Collects a row of gradients per task and writes what the balancer makes of them.

    Args:
        shared: Parameters that more than one task's loss may reach.
        own: Per task, the parameters that only its loss reaches; if losses are entangled (see
            `Learner.task_gradients`), those that are weighted as heads are.
        others: Parameters that learn from the plain sum of all losses, such as those of losses and
            balancers; every balancer weights them 1.
        scope: Which gradients the rows hold.
        last: those of `shared` that rows are of where the scope is "last_shared".
        distributed: The processes whose gradients are added up.
        sums_only: No rows will be collected, so that autograd itself may add to `.grad`; the
            caller empties `.grad` before.

    Raises:
        UsageError: The scope is "last_shared", and there is no such parameter.
    """

    def __init__(
        self,
        shared: Iterable[Parameter],
        own: Mapping[str, Iterable[Parameter]],
        others: Iterable[Parameter] = (),
        scope: Scope = "shared",
        last: Iterable[Parameter] = (),
        distributed: Distributed = SINGLE_PROCESS,
        sums_only: bool = False,
    ) -> None:
        self._distributed = distributed
        self._sums_only = sums_only
        self._shared = learning(shared)
        self._own = {task: learning(parameters) for task, parameters in own.items()}
        self._others = learning(others)
        owned = [p for parameters in self._own.values() for p in parameters]
        self._all = learning([*self._shared, *owned, *self._others])
        self._scope = scope
        measured = {"shared": self._shared, "features": [], "last_shared": learning(last)}[scope]
        if scope == "last_shared" and not measured:
            raise UsageError(MISSING["last_shared"])
        self._measured: list[Parameter] = measured
        self._rows = SharedRows(measured, len(self._own))
        self._own_rows: dict[str, Row] = {}
        # By the parameter's `id`, which takes a tenth of the time of its hash.
        self._sums: dict[int, Tensor] = {}
        # Of the shared parameters, in memory that is nobody else's; empty before it is known.
        self._direction: Row = ()
        # What the one pass through the trunk starts from, where rows are not of the trunk itself.
        self._cut = Cut()
        self._losses: list[tuple[str, Tensor]] = []
        self._scale = 1.0
        # Of a run, the first step tells what will come.
        self._may_be_sparse = True

    def collect_sum(self, losses: Sequence[Tensor], retain_graph: bool = False) -> None:
        """Add the gradient of a sum of losses for every parameter, in one backward pass.

        Args:
            losses: Scalars.
            retain_graph: Whether another backward pass follows.
        """
        retain_graph = retain_graph or bool(self._cut or self._losses)
        total = torch.stack([*losses]).sum()
        if self._sums_only:
            total.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
            if self._may_be_sparse:
                refuse_sparse(self._all, [p.grad for p in self._all])
        else:
            found = gradients(total, [*self._all, *self._cut.leaves], retain_graph)
            self._add(self._all, found[: len(self._all)])
            self._cut.add_unbalanced(found[len(self._all) :])

    def collect_rows(
        self,
        losses: Mapping[str, Tensor],
        retain_graph: bool = False,
        cut: Sequence[Tensor] = (),
        boundary: Boundary | None = None,
    ) -> None:
        """Add a row per task, in one backward pass each, which runs through its own head only.

        Args:
            losses: A scalar per present task.
            retain_graph: Whether another backward pass follows.
            cut: The features whose gradients are the rows if the scope is "features".
            boundary: Instead of a cut, where heads were separated from the backbone.

        Raises:
            UsageError: The scope is "features", and there is neither.
        """
        measured: Sequence[Tensor] = self._measured
        if self._scope == "features":
            measured = self._cut.extend(cut) if boundary is None else self._cut.separate(boundary)
            if not measured:
                raise UsageError(MISSING["features"])
            self._rows.extend(measured)
        elif self._scope == "last_shared":
            self._losses += losses.items()
        retain_graph = retain_graph or self._scope != "shared"
        for number, (task, loss) in enumerate(losses.items()):
            self._collect_row(task, loss, measured, retain_graph or number < len(losses) - 1)

    def collect_weighted(
        self,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, Sequence[float]],
        retain_graph: bool = False,
    ) -> None:
        """Add gradients of losses whose weights are known: no rows, one pass through the trunk.

        Parameters of single tasks have other weights than shared ones; a second pass reaches them
        and goes no further.

        Args:
            losses: A scalar per present task.
            weights: Per task, the weight at the shared parameters and the weight at its own.
            retain_graph: Whether another backward pass follows.
        """
        if not losses:
            return
        outputs = list(losses.values())
        # Each once: of entangled losses, several tasks have the same.
        own = learning(p for task in losses for p in self._own[task])
        shared, heads = (
            [torch.full_like(loss, weights[task][place]) for task, loss in losses.items()]
            for place in (0, 1)
        )
        self._add(self._others, gradients(outputs, self._others, True))
        self._add(own, gradients(outputs, own, True, heads))
        self._add(self._shared, gradients(outputs, self._shared, retain_graph, shared))

    def unscale(self, scale: float) -> None:
        """Divide everything collected by the loss scale."""
        # What still has to go through the trunk stays large, as half precision needs it.
        self._scale = scale if self._scope != "shared" else 1.0
        if self._scope != "features":
            self._rows.scale(1 / scale)
        rows = [gradient for row in self._own_rows.values() for gradient in row]
        written = [p.grad for p in self._all] if self._sums_only else []
        collected = [g for g in [*rows, *self._sums.values(), *written] if g is not None]
        # Autograd may have handed out one tensor twice; it must be divided once.
        distinct = list({gradient.data_ptr(): gradient for gradient in collected}.values())
        if distinct:
            torch._foreach_mul_(distinct, 1 / scale)

    def gramian(self) -> tuple[tuple[str, ...], Tensor]:
        """Return the tasks that have a row, and their (K, K) float64 Gramian on the CPU.

        Parameters that a task does not reach count as zeros in its row.
        """
        gramian = self._rows.gramian()
        if self._scope == "features":
            # Each rank has the features of its own samples: other coordinates, not other rows.
            self._distributed.all_reduce([gramian])
            gramian = gramian / self._scale**2
        return self._rows.tasks, gramian

    def apply(
        self, finisher: Decider | None, context: BalancerContext, accumulate: bool = False
    ) -> BalancingResult:
        """Write `.grad` of every parameter (None if no loss reached it) and clear the rows.

        Nothing is written if the Gramian or the balancer's answer is not finite; nor, where it is
        added, if the gradient is not.

        Args:
            finisher: The balancer that decides; None if there are no rows.
            context: What the balancer may know of the step.
            accumulate: Add the gradient to what `.grad` holds, in place.
        """
        if finisher is not None and self._distributed.world_size > 1:
            self._share_rows(context.tasks)
        if finisher is None or not self._rows.tasks:
            result = BalancingResult()
            self._through_trunk([None] * len(self._cut), {})
        else:
            result = finisher.decide(self, context)
        if result.status != "not finite":
            if self._distributed.world_size > 1:
                self._share_sums()
            if not self._sums_only:
                found = gathered(self._shared, self._direction, self._sums)
                # A run looks itself, at what was written.
                if accumulate and not all_finite([*found.values()]):
                    result = BalancingResult.refused("the gradient is not finite")
                else:
                    write(self._all, found, accumulate)
        self._may_be_sparse = False
        self.clear()
        return result

    def weigh(
        self, weights: Callable[[Tensor], Tensor], status: Callable[[], Status]
    ) -> BalancingResult:
        """Make the step's gradient the weighted sum of the rows.

        Args:
            weights: the (K, K) Gramian -> (K,) or (2, K) weights, as of `GramianBalancer`.
            status: how that ended; asked afterwards.

        Returns:
            Weights and cosines; the status "not finite" where the Gramian or a weight is not.
        """
        tasks = self._rows.tasks
        _, gramian = self.gramian()
        entries: list[list[float]] = gramian.tolist()
        if not all(map(math.isfinite, chain(*entries))):
            squares = [row[number] for number, row in enumerate(entries)]
            broken = [t for t, x in zip(tasks, squares, strict=True) if not math.isfinite(x)]
            of = f" of {', '.join(broken)}" if broken else ""
            return BalancingResult.refused(f"the gradient{of} is not finite")
        shared, heads = split_weights(weights(gramian))
        if not all(map(math.isfinite, chain(shared, heads))):
            return BalancingResult.refused("a weight of the balancer is not finite")
        if self._scope == "shared":
            self._direction = self._rows.direction(shared)
        elif self._scope == "features":
            own = dict(zip(tasks, heads, strict=True))
            self._through_trunk(self._rows.direction(shared), own)
        else:
            self._from_losses(dict(zip(tasks, shared, strict=True)))
        for task, weight in zip(tasks, heads, strict=True):
            self._add(self._own[task], scaled(self._own_rows[task], weight))
        return BalancingResult(
            weights=dict(zip(tasks, shared, strict=True)),
            heads=dict(zip(tasks, heads, strict=True)),
            cosines=cosines(tasks, entries),
            status=status(),
            gramian=gramian,
        )

    def combine(
        self,
        combine: Callable[[Tensor], Tensor],
        by_parameter: bool,
        heads: Callable[[], Tensor | None],
    ) -> BalancingResult:
        """Make the step's gradient what a function makes of the rows.

        Args:
            combine: (K, P) rows -> (P,) direction, as of `GradientBalancer`.
            by_parameter: Whether it is called for each parameter (or feature map) by itself.
            heads: The weights of the tasks' gradients at parameters of their own, asked for
                afterwards; None: all 1.

        Returns:
            The status "not finite" where a weight of a head is not.
        """
        direction = self._rows.combined(combine, by_parameter)
        answer = heads()
        own: dict[str, float] = {}
        if answer is not None:
            own = dict(zip(self._rows.tasks, answer.tolist(), strict=True))
            if not all(map(math.isfinite, own.values())):
                return BalancingResult.refused("a weight of the balancer is not finite")
        if self._scope == "shared":
            self._direction = direction
        else:
            self._through_trunk(direction, {t: own.get(t, 1.0) for t in self._rows.tasks})
        for task, row in self._own_rows.items():
            self._add(self._own[task], scaled(row, own.get(task, 1.0)))
        return BalancingResult()

    def clear(self) -> None:
        """Drop what was collected."""
        self._rows.clear()
        self._own_rows, self._sums, self._direction = {}, {}, ()
        self._cut, self._losses, self._scale = Cut(), [], 1.0

    def _share_rows(self, tasks: Sequence[str]) -> None:
        """Sum the rows over all ranks; a task that only other ranks have gets a row too."""
        present = {
            task for found in self._distributed.all_gather(self._rows.tasks) for task in found
        }
        if not present:
            return
        self._rows.arrange([task for task in tasks if task in present])
        for task in self._rows.tasks:
            self._own_rows.setdefault(task, [None] * len(self._own[task]))
        # Those of features stay apart, as `gramian` says.
        if self._scope != "features":
            self._rows.sum_over(self._distributed)

    def _share_sums(self) -> None:
        """Sum what every rank has collected beside the rows."""
        held = [p.grad if self._sums_only else self._sums.get(id(p)) for p in self._all]
        anywhere = self._distributed.any_of([gradient is not None for gradient in held])
        mine = []
        for parameter, gradient, found in zip(self._all, held, anywhere, strict=True):
            if not found:
                continue
            # In memory of its own, as it is written over.
            own = torch.zeros_like(parameter) if gradient is None else gradient.clone()
            mine.append(own)
            if self._sums_only:
                parameter.grad = own
            else:
                self._sums[id(parameter)] = own
        self._distributed.all_reduce(mine)

    def _collect_row(
        self, task: str, loss: Tensor, measured: Sequence[Tensor], retain_graph: bool
    ) -> None:
        # On its own, so that what autograd returned is gone before the next pass.
        own = self._own[task]
        reached = [*measured, *own, *self._others]
        found = gradients(loss, reached, retain_graph)
        if self._may_be_sparse:
            refuse_sparse(reached, found)
        row, rest = found[: len(measured)], found[len(measured) :]
        self._cut.keep_own(task, row)
        self._rows.add(task, row, rest)
        mine = rest[: len(own)]
        before = self._own_rows.get(task)
        self._own_rows[task] = mine if before is None else added(before, mine)
        self._add(self._others, rest[len(own) :])

    def _through_trunk(self, direction: Row, heads: Mapping[str, float]) -> None:
        """Lead gradients from features on to the parameters of the trunk.

        Args:
            direction: The balanced gradient at each place of the cut.
            heads: Weight of each task's gradient at parameters of its own.
        """
        own = [p for parameters in self._own.values() for p in parameters]
        for parameters, row in self._cut.lead_on(direction, heads, own, self._shared):
            self._add(parameters, scaled(row, 1 / self._scale))

    def _from_losses(self, weights: Mapping[str, float]) -> None:
        """Add the gradient of the weighted losses at the shared parameters, in one pass."""
        outputs = [loss for _, loss in self._losses]
        grad_outputs = [torch.full_like(loss, weights[task]) for task, loss in self._losses]
        if outputs:
            row = gradients(outputs, self._shared, False, grad_outputs)
            self._add(self._shared, scaled(row, 1 / self._scale))

    def _add(self, parameters: Sequence[Parameter], gradients: Row) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                seen = self._sums.get(id(parameter))
                self._sums[id(parameter)] = gradient if seen is None else seen + gradient


MISSING = {
    "features": "balancer: the scope 'features' compares gradients at the maps that heads read, "
    "and here is none that learns: unfreeze the backbone, or name them (`features` of `backward`)",
    "last_shared": "balancer: the scope 'last_shared' needs a backbone that names its last shared "
    "parameters (`last_shared_parameters`), not frozen; this one has none",
}
