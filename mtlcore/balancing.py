"""Balancing: from K losses to one update.

A run's balancing is a chain: any number of `LossBalancer`s, then at most one `GramianBalancer`
or `GradientBalancer`. Behind them stands one object with two phases, `TaskGradients`: *collect* a
row of gradients per present task, *apply* the balancer's answer and write `.grad`.

Equal weighting is the sum of the losses (weights 1), and heads weigh 1.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.tasks import Task

Scope = Literal["shared", "features", "last_shared"]
Status = Literal["converged", "degenerate", "not finite"]


@attrs.define(kw_only=True)
class BalancerContext:
    """What a balancer may know of the step it works in.

    Args:
        tasks: all tasks of the run.
        generator: the only source of randomness, the same on every rank.
        step: number of the step, from 0.
        epoch: number of the epoch, from 0.
        progress: part of the run done, 0 to 1.
        present: the tasks that this step has losses for.
        losses: their mean raw losses; known once the step is done, empty before.
        maps: elementwise losses where the balancer `needs_maps`.
        batch: the step's batch where the balancer `needs_maps`.
        reevaluate: computes the present tasks' losses once more at the updated parameters.
    """

    tasks: tuple[str, ...]
    generator: torch.Generator | None = None
    step: int = 0
    epoch: int = 0
    progress: float = 0.0
    present: tuple[str, ...] = ()
    losses: dict[str, float] = attrs.field(factory=dict)
    maps: Mapping[str, Tensor] = attrs.field(factory=dict)
    batch: Batch | None = None
    reevaluate: Callable[[], dict[str, float]] | None = None


class Balancer(nn.Module, abc.ABC):
    """What all balancers have in common; made without positional arguments.

    State lives in buffers, parameters (both under `Task.key`) and `get_extra_state` (a JSON
    tree), and changes only in `after_step`, which a skipped step never calls.

    Attributes:
        affine: whether its answer is affine in the losses. If not, accumulating gradients and
            several processes give another result than one large batch.
        batches: how many independent batches a step needs.
        generator: where randomness comes from without a context; None: torch's global one.
    """

    affine: bool = True
    batches: int = 1
    generator: torch.Generator | None = None

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Make room for the tasks before the optimizer is built; calling it again adds new ones."""
        return

    def after_step(self, context: BalancerContext) -> None:
        """Learn from a step that was taken."""
        return

    def restart(self) -> None:
        """Forget what was learnt, as the paper of a method with phases may ask."""
        return

    def random(self, context: BalancerContext | None) -> torch.Generator | None:
        """The generator to draw from."""
        return self.generator if context is None else context.generator

    def backward(
        self,
        losses: Mapping[str, Tensor],
        shared: Iterable[Parameter] = (),
        context: BalancerContext | None = None,
    ) -> BalancingResult:
        """Balance in any training loop: in place of `sum(losses.values()).backward()`.

        Adds to `.grad`, as `backward` does. Parameters that only one loss reaches are found
        through the graph. A balancer that learns from steps also needs `prepare(tasks)` before
        and `after_step(context)` after each of them.

        Args:
            losses: a scalar per task, each with its graph.
            shared: the parameters whose gradients are balanced, such as `trunk.parameters()`; a
                balancer of losses needs none.
            context: of the step; None: one of these losses and `self.generator`.

        Raises:
            UsageError: several losses reach a parameter that is not among `shared`.
        """
        if context is None:
            names = tuple(losses)
            context = BalancerContext(tasks=names, present=names, generator=self.generator)
        balancing = Balancing([self])
        balanced = balancing.transform(dict(losses), context)
        shared = list(shared)
        if balancing.finisher is None:
            everything = [*shared, *(p for loss in balanced.values() for p in _leaves(loss))]
            gradients = TaskGradients(dict.fromkeys(everything), {})
            gradients.collect_sum([*balanced.values()])
        else:
            gradients = TaskGradients(shared, _own_leaves(balanced, shared))
            gradients.collect_rows(balanced)
        return gradients.apply(balancing, context, accumulate=True)


class LossBalancer(Balancer):
    """K losses in, K losses out."""

    needs_maps: bool = False

    @abc.abstractmethod
    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """The losses (scalars by task) whose sum is learnt from.

        Args:
            losses: of the present tasks only; they must not be edited in place.
        """

    def current_weights(self) -> dict[str, float]:
        """Weight per task for the record; empty where it has none worth showing."""
        return {}


class GramianBalancer(Balancer):
    """A function of the inner products of the task gradients.

    Attributes:
        scope: which gradients the Gramian is made of.
    """

    scope: Scope = "shared"

    @abc.abstractmethod
    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """The weight of each task's gradient.

        Args:
            gramian: (K, K) float64 on the CPU, finite; entry i, j is `g_i . g_j`.

        Returns:
            (K,) float64 for the shared parameters, or (2, K) where the second row weighs heads.
        """

    @property
    def status(self) -> Status:
        """How the last call ended."""
        return "converged"


class GradientBalancer(Balancer):
    """A function of the task gradients themselves.

    Attributes:
        elementwise: coordinates do not depend on one another, so that the core may call it per
            parameter and nothing need be concatenated.
    """

    elementwise: bool = False

    @abc.abstractmethod
    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        """(K, P) task gradients -> (P,) direction; `rows` must not be edited."""


Finisher = GramianBalancer | GradientBalancer


class Balancing(nn.Module):
    """The chain of a run.

    Args:
        balancers: any number of loss balancers, then at most one of the other kinds.
        update_every: ask the last one only every so many steps and reuse its weights between.

    Raises:
        UsageError: the order is another.
    """

    def __init__(self, balancers: Sequence[Balancer], update_every: int = 1) -> None:
        super().__init__()
        for balancer in balancers[:-1]:
            if not isinstance(balancer, LossBalancer):
                raise UsageError(
                    f"balancer.chain: {type(balancer).__name__} works on gradients and must be "
                    "the last of the chain (and the only one of its sort)"
                )
        self.balancers = nn.ModuleList(balancers)
        self.update_every = update_every
        self._last_weights: dict[str, list[float]] = {}
        if update_every > 1 and not isinstance(self.finisher, GramianBalancer):
            raise UsageError("balancer.update_every needs a balancer that weighs task gradients")

    @property
    def finisher(self) -> Finisher | None:
        """The balancer of gradients, if there is one."""
        last = self.balancers[-1] if len(self.balancers) else None
        return last if isinstance(last, GramianBalancer | GradientBalancer) else None

    @property
    def loss_balancers(self) -> list[LossBalancer]:
        """The balancers of losses, in order."""
        return [b for b in self.balancers if isinstance(b, LossBalancer)]

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Prepare every balancer of the chain."""
        for balancer in self._all():
            balancer.prepare(tasks, data)

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """The losses after every loss balancer."""
        for balancer in self.loss_balancers:
            losses = balancer.transform(losses, context)
        return losses

    def after_step(self, context: BalancerContext) -> None:
        """Tell every balancer of a step that was taken."""
        for balancer in self._all():
            balancer.after_step(context)

    def restart(self) -> None:
        """Let every balancer forget."""
        self._last_weights = {}
        for balancer in self._all():
            balancer.restart()

    def reused_weights(self, tasks: Sequence[str], step: int) -> Tensor | None:
        """The last weights where this step is between two updates and they cover its tasks."""
        if step % self.update_every == 0 or any(t not in self._last_weights for t in tasks):
            return None
        columns = [self._last_weights[task] for task in tasks]
        return torch.tensor(columns, dtype=torch.float64).T

    def remember(self, tasks: Sequence[str], weights: Tensor) -> None:
        """Keep (2, K) weights for the steps until the next update."""
        self._last_weights = dict(zip(tasks, weights.T.tolist(), strict=True))

    def get_extra_state(self) -> dict[str, Any]:
        return {"last_weights": self._last_weights}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._last_weights = dict(state["last_weights"])

    def _all(self) -> list[Balancer]:
        return [b for b in self.balancers if isinstance(b, Balancer)]


@attrs.frozen(kw_only=True)
class BalancingResult:
    """What a step's balancing decided.

    Args:
        weights: per present task, of its row in the shared update; empty for a sum of losses.
        cosines: per pair of present tasks, of their gradients; empty without a Gramian.
        status: of the balancer's solver; "not finite" means that nothing may be learnt from.
    """

    weights: dict[str, float] = attrs.field(factory=dict)
    cosines: dict[tuple[str, str], float] = attrs.field(factory=dict)
    status: Status = "converged"


Row = list[Tensor | None]


class TaskGradients:
    """Collects a row of gradients per task and writes what the balancer makes of them.

    Args:
        shared: parameters that more than one task's loss may reach.
        own: per task the parameters that only its loss reaches.
        others: parameters that learn from the plain sum of all losses (a balancer's own, those
            of losses); they weigh 1 under every balancer.
    """

    def __init__(
        self,
        shared: Iterable[Parameter],
        own: Mapping[str, Iterable[Parameter]],
        others: Iterable[Parameter] = (),
    ) -> None:
        self._shared = [p for p in shared if p.requires_grad]
        self._own = {task: [p for p in ps if p.requires_grad] for task, ps in own.items()}
        self._others = [p for p in others if p.requires_grad]
        self._rows: dict[str, Row] = {}
        self._own_rows: dict[str, Row] = {}
        self._sums: dict[Parameter, Tensor] = {}
        self._owner = {p: task for task, ps in self._own.items() for p in ps}

    def collect_sum(self, losses: Sequence[Tensor]) -> None:
        """Add the gradient of a sum of losses, for every parameter: one backward pass."""
        parameters = [*self._shared, *self._owner, *self._others]
        self._add(parameters, _gradients(torch.stack([*losses]).sum(), parameters, False))

    def collect_rows(self, losses: Mapping[str, Tensor], keep_graph: bool = False) -> None:
        """Add a row per task: one backward pass each, through its own head only."""
        for number, (task, loss) in enumerate(losses.items()):
            own = self._own[task]
            parameters = [*self._shared, *own, *self._others]
            retain = keep_graph or number < len(losses) - 1
            gradients = _gradients(loss, parameters, retain)
            shared, rest = gradients[: len(self._shared)], gradients[len(self._shared) :]
            for rows, row in ((self._rows, shared), (self._own_rows, rest[: len(own)])):
                rows[task] = _added(rows[task], row) if task in rows else row
            self._add(self._others, rest[len(own) :])

    def unscale(self, scale: float) -> None:
        """Divide everything collected by the factor that the losses were multiplied by."""
        rows = [gradient for row in self._rows.values() for gradient in row]
        rows += [gradient for row in self._own_rows.values() for gradient in row]
        collected = [g for g in [*rows, *self._sums.values()] if g is not None]
        # Autograd may have handed out one tensor twice; it must be divided once.
        distinct = list({gradient.data_ptr(): gradient for gradient in collected}.values())
        if distinct:
            torch._foreach_mul_(distinct, 1 / scale)

    def gramian(self) -> tuple[tuple[str, ...], Tensor]:
        """The tasks that have a row, and their (K, K) float64 Gramian on the CPU.

        A shared parameter that a task does not reach counts as zero for it.
        """
        tasks = tuple(self._rows)
        entries: dict[tuple[int, int], Tensor] = {}
        for i, first in enumerate(tasks):
            for j in range(i, len(tasks)):
                pairs = [
                    (a, b)
                    for a, b in zip(self._rows[first], self._rows[tasks[j]], strict=True)
                    if a is not None and b is not None
                ]
                products = [torch.linalg.vecdot(a.flatten(), b.flatten()) for a, b in pairs]
                entries[i, j] = torch.stack(products).double().sum() if products else _zero()
        ranks = range(len(tasks))
        flat = torch.stack([entries[min(i, j), max(i, j)] for i in ranks for j in ranks])
        return tasks, flat.reshape(len(tasks), len(tasks)).cpu()

    def apply(
        self, balancing: Balancing, context: BalancerContext, accumulate: bool = False
    ) -> BalancingResult:
        """Write `.grad` of every parameter; None where no loss reached it. Clears the rows.

        Nothing is written where the Gramian or the answer is not finite. With `accumulate` the
        gradient is added to what `.grad` holds.
        """
        result = BalancingResult()
        if self._rows and balancing.finisher is not None:
            result = self._finish(balancing, balancing.finisher, context)
        if result.status == "not finite":
            self.clear()
            return result
        taken: set[int] = set()
        for parameter in [*self._shared, *self._owner, *self._others]:
            gradient = self._sums.get(parameter)
            if accumulate and parameter.grad is not None:
                gradient = parameter.grad if gradient is None else parameter.grad + gradient
            # Autograd may hand out one tensor twice, or an expanded one; `.grad` is edited in
            # place later (clipping), so each parameter needs memory of its own.
            if gradient is not None and (
                gradient.data_ptr() in taken or not gradient.is_contiguous()
            ):
                gradient = gradient.clone(memory_format=torch.contiguous_format)
            if gradient is not None:
                taken.add(gradient.data_ptr())
            parameter.grad = gradient
        self.clear()
        return result

    def clear(self) -> None:
        """Forget what was collected."""
        self._rows, self._own_rows, self._sums = {}, {}, {}

    def _finish(
        self, balancing: Balancing, finisher: Finisher, context: BalancerContext
    ) -> BalancingResult:
        if isinstance(finisher, GradientBalancer):
            self._combine(finisher, context)
            for task, row in self._own_rows.items():
                self._add(self._own[task], row)
            return BalancingResult()
        weights = balancing.reused_weights(tuple(self._rows), context.step)
        if weights is not None:
            tasks, result = tuple(self._rows), BalancingResult()
        else:
            tasks, gramian = self.gramian()
            if not bool(torch.isfinite(gramian).all()):
                return BalancingResult(status="not finite")
            weights = finisher.weights(gramian, context)
            if weights.dim() == 1:
                weights = torch.stack([weights, torch.ones_like(weights)])
            if not bool(torch.isfinite(weights).all()):
                return BalancingResult(status="not finite")
            balancing.remember(tasks, weights)
            result = BalancingResult(cosines=_cosines(tasks, gramian), status=finisher.status)
        values: list[list[float]] = weights.tolist()
        for number, task in enumerate(tasks):
            self._add(self._shared, _scaled(self._rows[task], values[0][number]))
            self._add(self._own[task], _scaled(self._own_rows[task], values[1][number]))
        return attrs.evolve(result, weights=dict(zip(tasks, values[0], strict=True)))

    def _combine(self, finisher: GradientBalancer, context: BalancerContext) -> None:
        rows = list(self._rows.values())
        columns = [
            (p, torch.stack([torch.zeros_like(p) if g is None else g for g in column]).flatten(1))
            for p, column in zip(self._shared, zip(*rows, strict=True), strict=True)
            if any(g is not None for g in column)
        ]
        if finisher.elementwise:
            parts = [finisher.combine(column, context) for _, column in columns]
        else:
            joint = finisher.combine(torch.cat([column for _, column in columns], dim=1), context)
            parts = list(torch.split(joint, [p.numel() for p, _ in columns]))
        parameters = [p for p, _ in columns]
        self._add(parameters, [x.view_as(p) for x, p in zip(parts, parameters, strict=True)])

    def _add(self, parameters: Sequence[Parameter], gradients: Row) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                seen = self._sums.get(parameter)
                self._sums[parameter] = gradient if seen is None else seen + gradient


def _leaves(loss: Tensor) -> list[Parameter]:
    """The leaves that a loss reaches, each once, in the order of a walk through its graph."""
    found: dict[Any, None] = {}
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[leaf] = None
        waiting += [following for following, _ in node.next_functions]
    return list(found)


def _own_leaves(
    losses: Mapping[str, Tensor], shared: Sequence[Parameter]
) -> dict[str, list[Parameter]]:
    common = set(shared)
    own = {task: [p for p in _leaves(loss) if p not in common] for task, loss in losses.items()}
    seen: dict[Parameter, str] = {}
    for task, parameters in own.items():
        for parameter in parameters:
            if seen.setdefault(parameter, task) != task:
                raise UsageError(
                    f"the losses of {seen[parameter]} and {task} both reach a parameter of shape "
                    f"{tuple(parameter.shape)} that is not among `shared`; its gradient would not "
                    "be balanced: name every parameter that several tasks use"
                )
    return own


def _gradients(loss: Tensor, parameters: Sequence[Parameter], retain: bool) -> Row:
    return list(
        torch.autograd.grad(loss, parameters, retain_graph=retain, allow_unused=True)
        if parameters
        else []
    )


def _added(first: Row, second: Row) -> Row:
    return [
        b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)
    ]


def _scaled(row: Row, weight: float) -> Row:
    if weight == 1:
        return row
    return [None if gradient is None else gradient * weight for gradient in row]


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def _cosines(tasks: Sequence[str], gramian: Tensor) -> dict[tuple[str, str], float]:
    norms = gramian.diagonal().sqrt()
    scaled = (gramian / norms[:, None] / norms[None, :]).tolist()
    size = len(tasks)
    return {
        (tasks[i], tasks[j]): scaled[i][j]
        for i in range(size)
        for j in range(i + 1, size)
        if norms[i] > 0 and norms[j] > 0
    }
