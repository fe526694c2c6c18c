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

    def reset(self) -> None:
        """Drop what was learnt; called where a backbone enters a phase that asks for it."""
        return

    def random(self, context: BalancerContext | None) -> torch.Generator | None:
        """The generator to draw from."""
        return self.generator if context is None else context.generator

    def backward(
        self,
        losses: Mapping[str, Tensor],
        shared_params: Iterable[Parameter] = (),
        context: BalancerContext | None = None,
        *,
        features: Sequence[Tensor] = (),
        last_shared_params: Iterable[Parameter] = (),
    ) -> BalancingResult:
        """Balance in a training loop of your own, in place of `sum(losses.values()).backward()`.

        Like `backward`, it adds to `.grad`. Parameters that only one loss reaches are found
        through the graph. A balancer that learns from steps also needs a call of `prepare(tasks)`
        before the first step and of `after_step(context)` after each step.

        Args:
            losses: a scalar per task, each with its graph.
            shared_params: the parameters whose gradients are balanced, such as
                `trunk.parameters()`; a balancer of losses needs none.
            context: the step's; its `losses` are filled in. None: a new one that knows these
                losses only and draws from `self.generator`.
            features: for a balancer whose scope is "features": the tensors whose gradients are
                compared, such as the trunk's output. Every path from `shared_params` to a loss
                must cross exactly one of them.
            last_shared_params: for a balancer whose scope is "last_shared": those of
                `shared_params` whose gradients are compared.

        Returns:
            The weights that were applied, and how the balancer ended.

        Raises:
            UsageError: several losses reach a parameter that is not in `shared_params`, or what
                the scope needs is missing.
        """
        if context is None:
            names = tuple(losses)
            context = BalancerContext(tasks=names, present=names, generator=self.generator)
        result = self._backward(losses, list(shared_params), context, features, last_shared_params)
        context.losses = {task: float(loss.detach()) for task, loss in losses.items()}
        return result

    @abc.abstractmethod
    def _backward(
        self,
        losses: Mapping[str, Tensor],
        shared_params: Sequence[Parameter],
        context: BalancerContext,
        features: Sequence[Tensor],
        last_shared_params: Iterable[Parameter],
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
        shared_params: Sequence[Parameter],
        context: BalancerContext,
        features: Sequence[Tensor],
        last_shared_params: Iterable[Parameter],
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
        shared_params: Sequence[Parameter],
        context: BalancerContext,
        features: Sequence[Tensor],
        last_shared_params: Iterable[Parameter],
    ) -> BalancingResult:
        own = own_leaves(losses, shared_params)
        gradients = TaskGradients(shared_params, own, (), self.scope, last_shared_params)
        gradients.collect_rows(losses, cut=features)
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
