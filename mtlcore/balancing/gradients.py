"""The gradients of the tasks: collected as rows, balanced, and written to `.grad`.

One file, as one object goes from collecting to writing.

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
from torch.autograd.graph import GradientEdge
from torch.nn import Parameter

from mtlcore.balancing.answers import Weights, cosines, split_weights
from mtlcore.balancing.batches import Batches
from mtlcore.balancing.context import (
    MISSING,
    BalancerContext,
    BalancingResult,
    Place,
    Scope,
    Status,
)
from mtlcore.balancing.cut import Cut
from mtlcore.balancing.depth import DepthEstimate
from mtlcore.balancing.factored import FactoredRows
from mtlcore.balancing.finite import all_finite, cannot_overflow
from mtlcore.balancing.graphs import gradients, learning, refuse_sparse
from mtlcore.balancing.look_ahead import LookAhead, NotFinite, ValidationLosses
from mtlcore.balancing.products import Row, total_there
from mtlcore.balancing.reading import HostReads
from mtlcore.balancing.rows import Key, SharedRows, added, scaled
from mtlcore.balancing.writing import gathered, share_sums, write
from mtlcore.distributed import SINGLE_PROCESS, Distributed
from mtlcore.errors import UsageError
from mtlcore.features import Boundary

__all__ = [
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
        batches: Number of independent batches of which rows are kept apart.
        estimate: What corrects the Gramian of the rows of `last`, or of the features; it also says
            which steps collect the rows of all shared parameters besides. None: they are taken as
            they are.
        factors: Whether the rows will be weighted by their inner products, so that those at wide
            linear layers may be kept as factors where that is cheaper.

    Attributes:
        is_finite: Whether `apply` knows that what it has written is finite, without having waited
            for it; if not, it may be.

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
        batches: int = 1,
        estimate: DepthEstimate | None = None,
        factors: bool = False,
    ) -> None:
        self._distributed = distributed
        self._sums_only = sums_only
        # Frozen or not: what the columns are of, where these are the same in every step.
        self._given = list(shared)
        self._shared = learning(self._given)
        self._own = {task: learning(parameters) for task, parameters in own.items()}
        self._others = learning(others)
        owned = [p for parameters in self._own.values() for p in parameters]
        self._all = learning([*self._shared, *owned, *self._others])
        self._scope = scope
        measured = {"shared": self._shared, "features": [], "last_shared": learning(last)}[scope]
        if scope == "last_shared" and not measured:
            raise UsageError(MISSING["last_shared"])
        self._measured: list[Parameter] = measured
        self._estimate = estimate
        # What the rows lack of those of all shared parameters, in steps that collect it too.
        here = {id(p) for p in measured}
        self._below = [p for p in self._shared if id(p) not in here]
        self._rows_below = SharedRows(self._below, len(self._own))
        # Of several batches or processes, rows are added up before they are multiplied.
        alone = batches == 1 and distributed.world_size == 1
        kept = factors and scope == "shared" and estimate is None and alone
        self._factored = FactoredRows(measured if kept else [])
        self._rows = SharedRows(measured, len(self._own) * batches, self._factored.places)
        self._own_rows: dict[Key, Row] = {}
        # Of the step that is applied; None before, and where there is one batch only.
        self._batches: Batches | None = None
        self._several = batches if batches > 1 else None
        # By the parameter's `id`, which takes a tenth of the time of its hash.
        self._sums: dict[int, Tensor] = {}
        # Of the shared parameters, in memory that is nobody else's; empty before it is known.
        self._direction: list[Tensor | None] = []
        # What the one pass through the trunk starts from, where rows are not of the trunk itself.
        self._cut = Cut()
        self._losses: list[tuple[Key, Tensor]] = []
        self._scale = self._loss_scale = 1.0
        # Of a run, the first step tells what will come.
        self._may_be_sparse = True
        # Of the step that is applied.
        self._reads = HostReads()
        self._begin: Callable[[], str | None] = lambda: None
        self.is_finite = False

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
        batch: int = 0,
    ) -> None:
        """Add a row per task, in one backward pass each, which runs through its own head only.

        Args:
            losses: A scalar per present task.
            retain_graph: Whether another backward pass follows.
            cut: The features whose gradients are the rows if the scope is "features".
            boundary: Instead of a cut, where heads were separated from the backbone.
            batch: Number of the independent batch that the losses are of. Of several, each loss is
                the task's mean loss, divided by the number of batches that have its labels.

        Raises:
            UsageError: The scope is "features", and there is neither.
        """
        measured: Sequence[Tensor] = self._measured
        if self._scope == "features":
            measured = self._cut.extend(cut) if boundary is None else self._cut.separate(boundary)
            # A batch without labels has no maps where each task has its own.
            if not measured and losses:
                raise UsageError(MISSING["features"])
            self._rows.extend(measured)
        elif self._scope == "last_shared":
            self._losses += (((task, batch), loss) for task, loss in losses.items())
        retain_graph = retain_graph or self._scope != "shared"
        edges = self._factored.begin([*losses.values()], first=not self._rows.keys)
        self._unfold(self._factored.lost(edges))
        for number, (task, loss) in enumerate(losses.items()):
            more = retain_graph or number < len(losses) - 1
            self._collect_row((task, batch), loss, measured, more, edges)

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
        self._loss_scale = scale
        # What still has to go through the trunk stays large, as half precision needs it.
        self._scale = scale if self._scope != "shared" else 1.0
        if self._scope != "features":
            self._rows.scale(1 / scale)
            self._factored.scale(1 / scale)
        if self._rows_below.keys:  # without, it has no memory yet
            self._rows_below.scale(1 / scale)
        rows = [gradient for row in self._own_rows.values() for gradient in row]
        written = [p.grad for p in self._all] if self._sums_only else []
        collected = [g for g in [*rows, *self._sums.values(), *written] if g is not None]
        # Autograd may have handed out one tensor twice; it must be divided once.
        distinct = list({gradient.data_ptr(): gradient for gradient in collected}.values())
        if distinct:
            torch._foreach_mul_(distinct, 1 / scale)

    def gramian(self) -> tuple[tuple[str, ...], Tensor]:
        """Return the tasks that have a row, and their (K, K) float64 Gramian on the CPU.

        Parameters that a task does not reach count as zeros in its row. Of several independent
        batches, it is the Gramian of the mean gradients.
        """
        tasks, gramian = self._gramian_there()
        return tasks, gramian.cpu()

    def apply(
        self,
        finisher: Decider | None,
        context: BalancerContext,
        accumulate: bool = False,
        validation: ValidationLosses | None = None,
        reads: HostReads | None = None,
        begin: Callable[[], str | None] = lambda: None,
    ) -> BalancingResult:
        """Write `.grad` of every parameter (None if no loss reached it) and clear the rows.

        Nothing is written if the Gramian or the balancer's answer is not finite; nor, where it is
        added, if the gradient is not.

        Args:
            finisher: The balancer that decides; None if there are no rows.
            context: What the balancer may know of the step.
            accumulate: Add the gradient to what `.grad` holds, in place.
            validation: Computes the losses of the validation batch, times the loss scale; see
                `BalancerContext.validation_products`.
            reads: What the host has not read yet, such as losses; None: nothing.
            begin: Called when all that is read, before the balancer decides; returns why the step
                is to be skipped, or None.
        """
        self._reads, self._begin = reads or HostReads(), begin
        self.is_finite = False
        context.gramians = context.labelled_batches = None
        if finisher is not None and (self._several or self._distributed.world_size > 1):
            self._share_rows(context.tasks)
        if finisher is None or not self._rows.keys:
            result = BalancingResult()
            if self._cut:  # a task without a row may have gradients of losses that are not balanced
                self._through_trunk([None] * len(self._cut), {})
        else:
            if self._batches is not None:
                context.gramians = self._batches.gramians()
                context.labelled_batches = self._batches.numbers
            if validation is not None:
                self._unfold()
                context.validation_products = self._look_ahead(validation)
            try:
                result = finisher.decide(self, context)
            except NotFinite:
                result = BalancingResult.refused("a gradient of the validation batch is not finite")
            context.validation_products = None
        if result.status != "not finite":
            if self._distributed.world_size > 1:
                share_sums(self._all, self._sums, self._sums_only, self._distributed)
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
        self,
        weights: Callable[[Tensor], Tensor],
        status: Callable[[], Status],
        generator: torch.Generator | None = None,
    ) -> BalancingResult:
        """Make the step's gradient the weighted sum of the rows.

        Args:
            weights: the (K, K) Gramian -> weights, as of `GramianBalancer`.
            status: how that ended; asked afterwards.
            generator: what `weights` draws from; None: torch's global one.

        Returns:
            Weights and cosines; the status "not finite" where the Gramian or a weight is not.
        """
        tasks, there = self._gramian_there()
        # Rows at the features, or at the last layer, still have the trunk before them.
        whole = self._scope == "shared" and self._batches is None and self._estimate is None
        known = self._lengths() if whole and not self._reads.at_once else {}
        gramian, *lengths = self._reads.read(there, *known.values())
        if (problem := self._begin()) is not None:
            return BalancingResult.refused(problem)
        entries: list[list[float]] = gramian.tolist()
        if not all(map(math.isfinite, chain(*entries))):
            squares = [row[number] for number, row in enumerate(entries)]
            broken = [t for t, x in zip(tasks, squares, strict=True) if not math.isfinite(x)]
            of = f" of {', '.join(broken)}" if broken else ""
            return BalancingResult.refused(f"the gradient{of} is not finite")
        error = None
        if self._estimate is None:
            answer = weights(gramian)
        else:
            exact = self._exact_gramian(gramian) if self._estimate.measures else None
            if exact is not None and not bool(exact.isfinite().all()):
                return BalancingResult.refused("a gradient is not finite")
            answer, gramian, error = self._estimate.answer(
                tasks, gramian, exact, weights, generator
            )
            entries = gramian.tolist()
        (shared, heads), (of_tasks, of_heads) = self._split(answer)
        if not all(map(math.isfinite, chain(shared, heads))):
            return BalancingResult.refused("a weight of the balancer is not finite")
        keys = self._rows.keys
        if known:
            # Rounding may leave a square of nothing below zero.
            lengths_of_rows = [math.sqrt(max(row[n], 0.0)) for n, row in enumerate(entries)]
            by_key: dict[Key | None, float] = dict(zip(keys, heads, strict=True))
            parts = [*zip(shared, lengths_of_rows, strict=True)]
            parts += [
                (by_key.get(key, 1.0), float(x)) for key, x in zip(known, lengths, strict=True)
            ]
            self.is_finite = cannot_overflow(parts, (p.dtype for p in self._all))
        if self._scope == "shared":
            self._direction = self._rows.direction(shared)
            weights_of = dict(zip(keys, shared, strict=True))
            for place, part in self._factored.direction(weights_of).items():
                self._direction[place] = part
        elif self._scope == "features":
            own = dict(zip(tasks, heads, strict=True))
            self._through_trunk(self._rows.direction(shared), own)
        else:
            self._from_losses(dict(zip(keys, shared, strict=True)))
        for key, weight in zip(keys, heads, strict=True):
            # Another process, or another batch, may be the only one to have it.
            if key in self._own_rows:
                self._add(self._own[key[0]], scaled(self._own_rows[key], weight))
        return BalancingResult(
            weights=dict(zip(tasks, of_tasks, strict=True)),
            heads=dict(zip(tasks, of_heads, strict=True)),
            cosines=cosines(tasks, entries),
            status=status(),
            gramian=gramian,
            error=error,
        )

    def combine(
        self,
        combine: Callable[[Tensor, Place | None], Tensor],
        by_parameter: bool,
        heads: Callable[[], Tensor | None],
        constant: bool = False,
    ) -> BalancingResult:
        """Make the step's gradient what a function makes of the rows.

        Args:
            combine: (K, P) rows -> (P,) direction, as of `GradientBalancer`; with what they are
                gradients of if it is called for each parameter.
            by_parameter: Whether it is called for each parameter (or feature map) by itself.
            heads: The weights of the tasks' gradients at parameters of their own, asked for
                afterwards; None: all 1.
            constant: Whether rows are over all shared parameters, also those that no task reaches
                in this step, and those that are frozen.

        Returns:
            The status "not finite" where a row, or a weight of a head, is not; of rows that are
            not, the function sees none.
        """
        self._unfold()
        tasks = [task for task, _ in self._rows.keys]
        (flags,) = self._reads.read(self._rows.not_finite_there())
        if (problem := self._begin()) is not None:
            return BalancingResult.refused(problem)
        broken = [flag > 0 for flag in flags.tolist()]
        # Each rank has features of its own, and all ranks skip a step together.
        if self._scope == "features" and self._distributed.world_size > 1:
            broken = self._distributed.any_of(broken)
        if any(broken):
            names = ", ".join(task for task, bad in zip(tasks, broken, strict=True) if bad)
            return BalancingResult.refused(f"the gradient of {names} is not finite")
        direction: Row
        if constant:
            direction = self._rows.combined_over(self._every(), lambda rows: combine(rows, None))
        elif by_parameter:
            direction = self._by_place(combine)
        else:
            direction = self._rows.combined(lambda rows: combine(rows, None))
        answer = heads()
        own = dict.fromkeys(tasks, 1.0)
        if answer is not None:
            own = dict(zip(tasks, answer.tolist(), strict=True))
            if not all(map(math.isfinite, own.values())):
                return BalancingResult.refused("a weight of the balancer is not finite")
        if self._scope == "shared":
            self._direction = [*direction]
        else:
            self._through_trunk(direction, own)
        for (task, _), row in self._own_rows.items():
            self._add(self._own[task], scaled(row, own[task]))
        return BalancingResult()

    def clear(self) -> None:
        """Drop what was collected."""
        self._rows.clear()
        self._factored.clear()
        self._rows_below.clear()
        self._own_rows, self._sums, self._direction = {}, {}, []
        if self._cut:
            self._cut = Cut()
        self._losses, self._scale, self._loss_scale = [], 1.0, 1.0
        self._batches = None

    def _gramian_there(self) -> tuple[tuple[str, ...], Tensor]:
        """Return the tasks that have a row, and their (K, K) Gramian where the rows are."""
        if self._batches is not None:  # refused for the scope "features"
            return self._batches.tasks, self._batches.gramian()
        gramian = self._rows.gramian_there()
        if self._factored:
            factored = self._factored.gramian(self._rows.keys)
            gramian = gramian.to(factored.device) + factored
        if self._scope == "features":
            # Each rank has the features of its own samples: other coordinates, not other rows.
            self._distributed.all_reduce([gramian])
            gramian = gramian / self._scale**2
        return tuple([task for task, _ in self._rows.keys]), gramian

    def _lengths(self) -> dict[Key | None, Tensor]:
        """Return upper bounds of the lengths of what is collected beside the shared rows.

        By row, of its gradients at parameters of single tasks; for None, of all else.
        """
        groups: dict[Key | None, list[Tensor]] = {
            key: [gradient for gradient in row if gradient is not None]
            for key, row in self._own_rows.items()
        }
        groups[None] = [*self._sums.values()]
        return {
            key: total_there(torch._foreach_norm(gradients), ())
            for key, gradients in groups.items()
            if gradients
        }

    def _every(self) -> list[Parameter]:
        """Return the shared parameters, frozen or not, each once."""
        return list({id(p): p for p in self._given}.values())

    def _by_place(self, combine: Callable[[Tensor, Place | None], Tensor]) -> Row:
        """Call a function for each parameter, or map of features, that a task reaches."""
        numbers = {id(p): number for number, p in enumerate(self._every())}

        def combine_at(rows: Tensor, tensor: Tensor, number: int) -> Tensor:
            number = numbers.get(id(tensor), number)
            return combine(rows, Place(number=number, values=tensor.detach()))

        return self._rows.combined_each(combine_at)

    def _share_rows(self, tasks: Sequence[str]) -> None:
        """Sum the rows over all ranks; what only other ranks or batches have gets a row too."""
        found = self._distributed.all_gather(self._rows.keys)
        present = dict.fromkeys(key for keys in found for key in keys)
        if not present:
            return
        if self._distributed.world_size == 1:
            tasks = list(dict.fromkeys(task for task, _ in present))
        else:
            anywhere = {task for task, _ in present}
            tasks = [task for task in tasks if task in anywhere]
        batches = Batches(present, tasks, self._several or 1)
        self._rows.arrange(batches.keys)
        self._batches = batches if self._several else None
        # On every rank, also on one without a sample.
        if self._estimate is not None and self._estimate.measures:
            self._rows_below.arrange(batches.keys)
            self._rows_below.sum_over(self._distributed)
        # Those of features stay apart, as `gramian` says.
        if self._scope != "features" and self._distributed.world_size > 1:
            self._rows.sum_over(self._distributed)
        if self._batches is not None:
            self._batches.products = self._rows.gramian()

    def _collect_row(
        self,
        key: Key,
        loss: Tensor,
        measured: Sequence[Tensor],
        retain_graph: bool,
        edges: Mapping[int, GradientEdge],
    ) -> None:
        # On its own, so that what autograd returned is gone before the next pass.
        task, own = key[0], self._own[key[0]]
        measures = self._estimate is not None and self._estimate.measures
        below = self._below if measures and self._scope == "last_shared" else []
        reached = [*measured, *own, *self._others, *below]
        asked = [edges.get(place, x) for place, x in enumerate(reached)] if edges else reached
        found = gradients(loss, asked, retain_graph)
        if edges:
            for place in edges:
                self._factored.add(key, place, found[place])
            found = [None if place in edges else x for place, x in enumerate(found)]
        if self._may_be_sparse:
            refuse_sparse(reached, found)
        if below:
            self._rows_below.add(key, found[-len(below) :])
            found = found[: -len(below)]
        row, rest = found[: len(measured)], found[len(measured) :]
        if measures and self._scope == "features":
            self._rows_below.add(key, self._cut.through(row, self._below))
        self._cut.keep_own(task, row)
        self._rows.add(key, row, rest)
        mine = rest[: len(own)]
        before = self._own_rows.get(key)
        self._own_rows[key] = mine if before is None else added(before, mine)
        self._add(self._others, rest[len(own) :])

    def _unfold(self, places: Sequence[int] | None = None) -> None:
        """Make rows of what is kept as factors: at these places, or all."""
        for key, place, matrix in self._factored.unfold(places):
            row: list[Tensor | None] = [None] * len(self._measured)
            row[place] = matrix
            self._rows.add(key, row)

    def _through_trunk(self, direction: Row, heads: Mapping[str, float]) -> None:
        """Lead gradients from features on to the parameters of the trunk.

        Args:
            direction: The balanced gradient at each place of the cut.
            heads: Weight of each task's gradient at parameters of its own.
        """
        own = [p for parameters in self._own.values() for p in parameters]
        for parameters, row in self._cut.lead_on(direction, heads, own, self._shared):
            self._add(parameters, scaled(row, 1 / self._scale))

    def _from_losses(self, weights: Mapping[Key, float]) -> None:
        """Add the gradient of the weighted losses at the shared parameters, in one pass."""
        outputs = [loss for _, loss in self._losses]
        grad_outputs = [torch.full_like(loss, weights[key]) for key, loss in self._losses]
        if outputs:
            row = gradients(outputs, self._shared, False, grad_outputs)
            self._add(self._shared, scaled(row, 1 / self._scale))

    def _exact_gramian(self, gramian: Tensor) -> Tensor:
        """Return the (K, K) Gramian of the rows of all shared parameters.

        Args:
            gramian: Of the rows of those that are compared; features are none of them.
        """
        if not self._below:
            return gramian
        below = self._rows_below.gramian()
        return below if self._scope == "features" else below + gramian

    def _split(self, answer: Tensor) -> tuple[Weights, Weights]:
        """Return what a balancer's answer means: weights of all rows, and of the tasks."""
        if self._batches is not None:
            return self._batches.split(answer)
        weights = split_weights(answer)
        return weights, weights

    def _look_ahead(self, losses: ValidationLosses) -> LookAhead:
        return LookAhead(
            losses, self._loss_scale, self._rows, self._own_rows, self._shared, self._own,
            self._split, self._distributed,
        )  # fmt: skip

    def _add(self, parameters: Sequence[Parameter], gradients: Row) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                seen = self._sums.get(id(parameter))
                self._sums[id(parameter)] = gradient if seen is None else seen + gradient
