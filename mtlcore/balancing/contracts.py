"""What a balancer is: of losses, of the Gramian of the task gradients, or of the gradients.

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
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.balancing.context import BalancerContext, BalancingResult, Scope, Status
from mtlcore.balancing.gradients import TaskGradients, own_leaves
from mtlcore.data import Batch
from mtlcore.tasks import Task


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
        result = self._backward(losses, list(shared), context, cut, last)
        context.losses = {task: float(loss.detach()) for task, loss in losses.items()}
        return result

    @abc.abstractmethod
    def _backward(
        self,
        losses: Mapping[str, Tensor],
        shared: Sequence[Parameter],
        context: BalancerContext,
        cut: Sequence[Tensor],
        last: Iterable[Parameter],
    ) -> BalancingResult: ...


class LossBalancer(Balancer):
    """K losses in, K losses out.

    Attributes:
        needs_maps: it works on elementwise losses, `BalancerContext.maps`.
        sums_over_ranks: what it gathers from maps it adds up over the processes, through
            `BalancerContext.distributed`, so that it may work in several of them.
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

    def _backward(
        self,
        losses: Mapping[str, Tensor],
        shared: Sequence[Parameter],
        context: BalancerContext,
        cut: Sequence[Tensor],
        last: Iterable[Parameter],
    ) -> BalancingResult:
        balanced = self.transform(dict(losses), context)
        torch.stack([*balanced.values()]).sum().backward()  # type: ignore[no-untyped-call]
        return BalancingResult()


class RowBalancer(Balancer):
    """What balancers of task gradients have in common; subclass one of its two kinds.

    Attributes:
        scope: which gradients the rows are of (see `mtlcore.balancing.contracts`).
    """

    scope: Scope = "shared"

    @abc.abstractmethod
    def decide(self, gradients: TaskGradients, context: BalancerContext) -> BalancingResult:
        """Turn the collected rows into the step's gradient; the core calls this once a step."""

    def _backward(
        self,
        losses: Mapping[str, Tensor],
        shared: Sequence[Parameter],
        context: BalancerContext,
        cut: Sequence[Tensor],
        last: Iterable[Parameter],
    ) -> BalancingResult:
        own = own_leaves(losses, shared)
        gradients = TaskGradients(shared, own, (), self.scope, last)
        gradients.collect_rows(losses, cut=cut)
        context.losses = {task: float(loss.detach()) for task, loss in losses.items()}
        return gradients.apply(self, context, accumulate=True)


class GramianBalancer(RowBalancer):
    """A function of the inner products of the task gradients."""

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

    def decide(self, gradients: TaskGradients, context: BalancerContext) -> BalancingResult:
        """Weigh the rows by what `weights` says of their Gramian."""
        return gradients.weigh(partial(self.weights, context=context), lambda: self.status)


class GradientBalancer(RowBalancer):
    """A function of the task gradients themselves.

    Attributes:
        elementwise: coordinates do not depend on one another, so that the core may call it per
            parameter and nothing need be concatenated.
    """

    elementwise: bool = False

    @abc.abstractmethod
    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        """(K, P) task gradients -> (P,) direction; `rows` must not be edited."""

    def decide(self, gradients: TaskGradients, context: BalancerContext) -> BalancingResult:
        """Take the direction that `combine` makes of the rows."""
        gradients.combine(partial(self.combine, context=context), self.elementwise)
        return BalancingResult()
