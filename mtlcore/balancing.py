"""Balancing: from K losses to one update.

A run's balancing is a chain: any number of `LossBalancer`, then at most one `GramianBalancer` or
`GradientBalancer`. Behind them stands one object with two phases (`mtlcore.gradients`): *collect* a
row of gradients per present task, *apply* the balancer's answer and write `.grad`.

Which gradients a `GramianBalancer` compares is its `scope`:

* "shared": those of all shared parameters; K backward passes through the trunk.
* "features": those of the tensors where the trunk ends (`Features.cut`); K passes through the heads
  and one, of the weighted sum, through the trunk.
* "last_shared": those of `Backbone.last_shared_parameters()`; K passes through heads down to these,
  then one of the weighted losses through everything.

The last two need the graph of a step until its update: with micro-batches, that of all of them.

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
from mtlcore.ranks import ALONE, Ranks
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
        losses: their mean raw losses; empty until gradients are balanced.
        maps: elementwise losses of view 0 where the balancer `needs_maps`.
        batch: the batch they are of.
        reevaluate: computes the present tasks' losses once more at the updated parameters.
        ranks: the processes that train together; each sees its own part of a step.
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
    ranks: Ranks = ALONE


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
        *,
        cut: Sequence[Tensor] = (),
        last: Iterable[Parameter] = (),
    ) -> BalancingResult:
        """Balance in any training loop: in place of `sum(losses.values()).backward()`.

        Adds to `.grad`, as `backward` does. Parameters that only one loss reaches are found
        through the graph. A balancer that learns from steps also needs `prepare(tasks)` before
        and `after_step(context)` after each of them.

        Args:
            losses: a scalar per task, each with its graph.
            shared: the parameters whose gradients are balanced, such as `trunk.parameters()`; a
                balancer of losses needs none.
            context: of the step, told `losses`; None: one of these losses and `self.generator`.
            cut: what a balancer with the scope "features" compares gradients of: tensors that every
                path from `shared` to a loss crosses once, such as the trunk's output.
            last: what one with the scope "last_shared" compares gradients of: some of `shared`.

        Raises:
            UsageError: several losses reach a parameter that is not among `shared`, or what the
                scope needs is missing.
        """
        if context is None:
            names = tuple(losses)
            context = BalancerContext(tasks=names, present=names, generator=self.generator)
        shared = list(shared)
        if isinstance(self, GramianBalancer | GradientBalancer):
            from mtlcore.gradients import TaskGradients, own_leaves  # which needs this module

            own = own_leaves(losses, shared)
            gradients = TaskGradients(shared, own, (), scope_of(self), last)
            gradients.collect_rows(losses, cut=cut)
            context.losses = {task: float(loss.detach()) for task, loss in losses.items()}
            return gradients.apply(self, context, accumulate=True)
        balanced = Balancing([self]).transform(dict(losses), context)
        context.losses = {task: float(loss.detach()) for task, loss in losses.items()}
        torch.stack([*balanced.values()]).sum().backward()  # type: ignore[no-untyped-call]
        return BalancingResult()


class LossBalancer(Balancer):
    """K losses in, K losses out.

    Attributes:
        needs_maps: it works on elementwise losses, `BalancerContext.maps`.
        sums_over_ranks: what it gathers from maps it adds up over `BalancerContext.ranks`, so that
            it may work in several processes.
    """

    needs_maps: bool = False
    sums_over_ranks: bool = False

    @abc.abstractmethod
    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """The losses (scalars by task) whose sum is learnt from.

        Args:
            losses: of the present tasks only; they must not be edited in place.
        """

    def current_weights(self) -> Mapping[str, float | Mapping[str, float]]:
        """Weight per task for the record; empty where it has none worth showing.

        A task with several, such as one per class, gives them by name; they are recorded as the
        metrics `weight/<name>` of that task.
        """
        return {}


class GramianBalancer(Balancer):
    """A function of the inner products of the task gradients.

    Attributes:
        scope: which gradients the Gramian is made of (see `mtlcore.balancing`).
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


def scope_of(finisher: Finisher | None) -> Scope:
    """Which gradients it compares; balancers of gradients themselves need all shared ones."""
    return finisher.scope if isinstance(finisher, GramianBalancer) else "shared"


class Balancing(nn.Module):
    """The chain of a run.

    Args:
        balancers: any number of loss balancers, then at most one of the other kinds.
        update_every: ask the last one only every so many steps and reuse its weights between; a
            task that it was not asked about for long keeps its own.

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
        # The same once more: a ModuleList takes microseconds to look into, several times a step.
        self._chain = tuple(balancers)
        self._of_losses = tuple(b for b in balancers if isinstance(b, LossBalancer))
        self.update_every = update_every
        self._last_weights: dict[str, list[float]] = {}
        if update_every > 1 and not isinstance(self.finisher, GramianBalancer):
            raise UsageError("balancer.update_every needs a balancer that weighs task gradients")

    @property
    def finisher(self) -> Finisher | None:
        """The balancer of gradients, if there is one."""
        last = self._chain[-1] if self._chain else None
        return last if isinstance(last, GramianBalancer | GradientBalancer) else None

    @property
    def loss_balancers(self) -> Sequence[LossBalancer]:
        """The balancers of losses, in order."""
        return self._of_losses

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Prepare every balancer of the chain."""
        for balancer in self._chain:
            balancer.prepare(tasks, data)

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """The losses after every loss balancer; a batch without labels has none to balance."""
        for balancer in self.loss_balancers if losses else ():
            losses = balancer.transform(losses, context)
        return losses

    def after_step(self, context: BalancerContext) -> None:
        """Tell every balancer of a step that was taken."""
        for balancer in self._chain:
            balancer.after_step(context)

    def restart(self) -> None:
        """Let every balancer forget."""
        self._last_weights = {}
        for balancer in self._chain:
            balancer.restart()

    def reused_weights(self, tasks: Sequence[str], step: int) -> Mapping[str, list[float]] | None:
        """The last weights where this step is between two updates and all tasks have some.

        Args:
            tasks: of the run, so that all ranks and micro-batches of a step do the same.

        Returns:
            Per task that of its gradient at the shared parameters, and at its own.
        """
        if step % self.update_every == 0 or any(t not in self._last_weights for t in tasks):
            return None
        return self._last_weights

    def remember(self, result: BalancingResult) -> None:
        """Keep the weights of a step that was taken, if there are steps that will reuse them."""
        if self.update_every > 1:
            new = {task: [result.weights[task], head] for task, head in result.heads.items()}
            self._last_weights = {**self._last_weights, **new}

    def get_extra_state(self) -> dict[str, Any]:
        return {"last_weights": self._last_weights}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._last_weights = dict(state["last_weights"])


@attrs.frozen(kw_only=True)
class BalancingResult:
    """What a step's balancing decided.

    Args:
        weights: per present task, of its row in the shared update; empty for a sum of losses.
        heads: the same at the parameters of one task alone; empty where nothing new was decided.
        cosines: per pair of present tasks, of their gradients; empty without a Gramian.
        status: of the balancer's solver; "not finite" means that nothing may be learnt from.
    """

    weights: dict[str, float] = attrs.field(factory=dict)
    heads: dict[str, float] = attrs.field(factory=dict)
    cosines: dict[tuple[str, str], float] = attrs.field(factory=dict)
    status: Status = "converged"
