"""The contracts of balancers: of losses, of the Gramian of the task gradients, of the gradients.

The `scope` of a balancer of gradients says which gradients it compares:

* "shared": those of all shared parameters. K backward passes run through the trunk.
* "features": those of the tensors where the trunk ends (`Features.cut`). K passes run through the
  heads, and one, of the weighted sum, through the trunk.
* "last_shared": those of `Backbone.last_shared_parameters()`. K passes run through the heads down
  to these parameters, then one, of the weighted losses, through everything.

The last two keep the graph of a step until its update: with micro-batches, the graphs of all.

One file: the contracts differ in a method or two, and are read side by side.

Equal weighting is the sum of the losses (weights 1); heads have weight 1.
"""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore._deprecation import warn_deprecated
from mtlcore.balancing.context import (
    BalancerContext,
    BalancingResult,
    Granularity,
    Place,
    Scope,
    Status,
)
from mtlcore.balancing.finite import floats, not_finite
from mtlcore.balancing.gradients import TaskGradients
from mtlcore.balancing.graphs import all_leaves, learning, own_leaves
from mtlcore.balancing.own_loop import (
    given_parameters,
    refuse_several_processes,
    remembering,
    scalar_losses,
    set_aside,
)
from mtlcore.balancing.tentative import Tentative
from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.metrics import MetricValues
from mtlcore.tasks import Task


class Balancer(nn.Module, abc.ABC):
    """Base of all balancers; the constructor takes settings only.

    State lives in buffers, in parameters (both under `Task.key`; made in `prepare` at the latest)
    and in `get_extra_state` (a tree of tensors and JSON values). It changes only in `after_step`,
    which is not called after a skipped step, and in `after_evaluation`. State that is used in the
    step that makes it is kept by `Tentative`.

    Attributes:
        affine: Whether the result is affine in the losses. If not, gradient accumulation and
            several processes give another result than one large batch.
        generator: Source of randomness without a context; None: torch's global generator.
        prepared: Names of the tasks that `prepare` was told of.
        batches: Number of independent batches of training samples that a step needs, whose
            gradients `BalancerContext.gramians` compares; more than one only for a
            GramianBalancer. A step learns from the mean of their gradients, unless `weights`
            answers for each batch.
        validation: The split that one more batch of each step comes from, "val" or "train", for
            `BalancerContext.validation_products`; only for a GramianBalancer. None: there is none.
        reevaluates: Whether `after_step` needs `BalancerContext.reevaluate`; an optimizer that
            cannot compute it is refused.
    """

    affine: bool = True
    generator: torch.Generator | None = None
    prepared: frozenset[str] = frozenset()
    batches: int = 1
    validation: Literal["val", "train"] | None = None
    reevaluates: bool = False

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        # A balancer that makes room for tasks would otherwise weigh the others by 1, or fail.
        if "prepare" in vars(cls):
            cls.prepare = remembering(cls.prepare)  # type: ignore[method-assign]

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Allocate state for the tasks, before the optimizer is built.

        Args:
            tasks: All tasks; a second call adds new ones and keeps what is known of the others.
            data: Batches of training labels, loaded only when iterated.
        """
        return

    def after_step(self, context: BalancerContext) -> None:
        """Update the state after a step that was taken, also one that asked for no weights."""
        return

    def after_evaluation(self, metrics: MetricValues) -> None:
        """Update the state after an evaluation on the validation split.

        Args:
            metrics: Task -> metric -> value, "loss" among them, of every task that learns or has
                stopped early; the same in every process. A value is NaN where nothing was valid.
        """
        return

    def current_weights(self) -> Mapping[str, float | Mapping[str, float]]:
        """Return the weight of each task for the record; empty if there is none worth showing.

        Balancers of Gramians need none: the weights of their rows are recorded anyway. A task
        with several weights, such as one per class, gives them by name; they are recorded as the
        metrics `weight/<name>` of that task.
        """
        return {}

    def reset(self) -> None:
        """Drop what was learnt; called when a backbone enters a phase that asks for it."""
        return

    def random(self, context: BalancerContext | None) -> torch.Generator | None:
        """Return the generator to draw from, which is on the CPU."""
        return self.generator if context is None else context.generator

    def backward(
        self,
        losses: Mapping[str, Tensor],
        shared_params: Iterable[Parameter] = (),
        context: BalancerContext | None = None,
        *,
        features: Sequence[Tensor] = (),
        last_shared_params: Iterable[Parameter] = (),
        more_losses: Sequence[Mapping[str, Tensor]] = (),
        validation: Callable[[], Mapping[str, Tensor]] | None = None,
        shared: Iterable[Parameter] | None = None,
    ) -> BalancingResult:
        """Balance in a training loop of your own, in place of `sum(losses.values()).backward()`.

        Like `backward`, it adds to `.grad`. Parameters that only one loss reaches are found
        through the graph; other leaves that require gradients, such as an input, get those of the
        sum of the losses. A balancer that has `prepare` needs a call of it before the first step,
        with all tasks, and one that learns from steps a call of `after_step(context)` after each
        step that was taken.

        Where a loss, a gradient or the balancer's answer is not finite, nothing is written, the
        status is "not finite" and `problem` says what it was; the step should be skipped, without
        `after_step`. No losses at all do nothing.

        Args:
            losses: a scalar per task, each with its graph; a task without labels is left out.
            shared_params: the parameters whose gradients are balanced, such as
                `trunk.parameters()`; a balancer of losses needs none.
            context: the step's; its `present` and `losses` are filled in. None: a new one that
                knows these losses only and draws from `self.generator`.
            features: for a balancer whose scope is "features": the tensors whose gradients are
                compared, such as the trunk's output. Every path from `shared_params` to a loss
                must cross exactly one of them.
            last_shared_params: for a balancer whose scope is "last_shared": those of
                `shared_params` whose gradients are compared.
            more_losses: for a balancer of several independent batches (`batches`): the losses of
                each batch but the first, from a forward pass of its own.
            validation: for a balancer with a validation batch (`validation`): computes a scalar
                per task, with its graph, at the parameters as they are when it is called.
            shared: the name that `shared_params` had at first; deprecated.

        Returns:
            The weights that were applied, and how the balancer ended.

        Raises:
            UsageError: several processes train together; the balancer was not prepared; a loss is
                no scalar with a graph; the losses are not of as many batches as it needs; several
                losses reach a parameter that is not in `shared_params`; what the scope needs is
                missing; or, for a balancer of task gradients, a reentrant checkpoint, a function
                that torch.compile made for one backward pass, or a sparse gradient is in the way.
        """
        if shared is not None:
            warn_deprecated(
                "balancer.backward(shared=...)", since="0.1", instead="name them shared_params"
            )
            shared_params = shared
        refuse_several_processes()
        batches = [scalar_losses(batch) for batch in (losses, *more_losses)]
        self._check_batches(len(batches), validation is not None)
        names = tuple(dict.fromkeys(task for batch in batches for task in batch))
        self._check_prepared(names)
        trunk = given_parameters(shared_params, "shared_params")
        last = given_parameters(last_shared_params, "last_shared_params")
        if context is None:
            context = BalancerContext(tasks=names, generator=self.generator)
        context.present = names
        if not names:
            return BalancingResult()
        problems = [not_finite({"loss": values}) for values in floats(*batches)]
        problem = next((found for found in problems if found is not None), None)
        if problem is not None:
            result = BalancingResult.refused(problem)
        else:
            result = self._backward(batches, trunk, context, features, last, validation)
        if result.status == "not finite":
            for module in self.modules():
                if isinstance(module, Tentative):
                    module.discard()
        context.gramian = result.gramian
        return result

    def _check_prepared(self, losses: Iterable[str]) -> None:
        unknown = [task for task in losses if task not in self.prepared]
        if unknown and type(self).prepare is not Balancer.prepare:
            raise UsageError(
                f"balancer.backward: {type(self).__name__} does not know the task {unknown[0]!r}; "
                "call balancer.prepare(tasks) once, with a mtlcore.Task for every task, before the "
                "optimizer is made"
            )

    def _check_batches(self, given: int, validation: bool) -> None:
        name = type(self).__name__
        if given != self.batches:
            raise UsageError(
                f"balancer: {name} needs the losses of {self.batches} independent "
                f"{'batch' if self.batches == 1 else 'batches'} a step, and got those of {given}; "
                "in a loop of your own, hand those of each batch but the first to "
                "backward(..., more_losses=[...])"
            )
        if validation != (self.validation is not None):
            raise UsageError(
                f"balancer: {name} "
                + (
                    "has no use for a validation batch; leave out `validation` of backward"
                    if validation
                    else "compares gradients with those of a validation batch; in a loop of your "
                    "own, hand backward(..., validation=...) a function that computes its losses"
                )
            )

    @abc.abstractmethod
    def _backward(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        shared_params: Sequence[Parameter],
        context: BalancerContext,
        features: Sequence[Tensor],
        last_shared_params: Sequence[Parameter],
        validation: Callable[[], Mapping[str, Tensor]] | None,
    ) -> BalancingResult: ...


class LossBalancer(Balancer):
    """A balancer that turns K losses into K losses.

    Attributes:
        needs_maps: Whether it reads elementwise losses, `BalancerContext.maps`.
        sums_over_ranks: Whether it sums what it gathers from maps over the processes, through
            `BalancerContext.distributed`; without, it is refused in several processes.
    """

    needs_maps: bool = False
    sums_over_ranks: bool = False

    @abc.abstractmethod
    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """Return the losses, scalars by task, whose sum is differentiated.

        Args:
            losses: Losses of the present tasks; they must not be edited in place.
            context: What is known of the step.
        """

    def _backward(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        shared_params: Sequence[Parameter],
        context: BalancerContext,
        features: Sequence[Tensor],
        last_shared_params: Sequence[Parameter],
        validation: Callable[[], Mapping[str, Tensor]] | None,
    ) -> BalancingResult:
        (losses,) = batches
        balanced = self.transform(dict(losses), context)
        # It can be infinite where the loss is not (an overflowing weight).
        found, context.losses = floats(balanced, losses)
        problem = not_finite({"balanced loss": found})
        if problem is not None:
            return BalancingResult.refused(problem)
        # What a reentrant checkpoint hides is among those given at best; `backward` reaches it.
        leaves = learning([*shared_params, *all_leaves(balanced.values())])
        with set_aside(leaves) as are_finite:
            torch.autograd.backward([*balanced.values()])
            if are_finite():
                return BalancingResult()
        return BalancingResult.refused("the gradient is not finite")


class RowBalancer(Balancer):
    """Base of balancers of task gradients; subclass one of its two kinds.

    Attributes:
        scope: Which gradients are compared: "shared", "features" or "last_shared".
    """

    scope: Scope = "shared"

    @abc.abstractmethod
    def decide(self, gradients: TaskGradients, context: BalancerContext) -> BalancingResult:
        """Turn the collected rows into the step's gradient; the core calls this once a step."""

    def _backward(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        shared_params: Sequence[Parameter],
        context: BalancerContext,
        features: Sequence[Tensor],
        last_shared_params: Sequence[Parameter],
        validation: Callable[[], Mapping[str, Tensor]] | None,
    ) -> BalancingResult:
        shares = Counter(task for losses in batches for task in losses)
        # Tasks are in the mean over the batches that have them.
        parts = [{t: x / n if (n := shares[t]) > 1 else x for t, x in b.items()} for b in batches]
        means = {t: reduce(add, [part[t] for part in parts if t in part]) for t in shares}
        several = self.scope != "features"
        own, inputs = own_leaves(means, shared_params, several_passes=several)
        gradients = TaskGradients(
            shared_params,
            own,
            inputs,
            self.scope,
            last_shared_params,
            batches=self.batches,
            factors=isinstance(self, GramianBalancer),
        )
        for number, part in enumerate(parts):
            gradients.collect_rows(part, cut=features, batch=number)
        (context.losses,) = floats(means)
        compute = None if validation is None else lambda: [scalar_losses(validation())]
        return gradients.apply(self, context, accumulate=True, validation=compute)


class GramianBalancer(RowBalancer):
    """A balancer that weights the task gradients by their inner products."""

    @abc.abstractmethod
    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the weight of each task's gradient.

        Args:
            gramian: (K, K) float64 on the CPU, finite; entry i, j is the inner product of the
                gradients of `context.present[i]` and `context.present[j]`.
            context: What is known of the step, passed by keyword; None outside a training loop.
                Of several independent batches, `gramian` is of the mean gradients, and
                `context.gramians` has the products of each two batches.

        Returns:
            (K,) float64 for the shared parameters, or (2, K) whose second row weights the heads.
            Of B independent batches, these weigh the mean gradients over the batches that have a
            label of the task; (B, 2, K) weighs the gradients of each batch instead, and their sum
            is what the step learns from.
        """

    @property
    def status(self) -> Status:
        """How the last call of `weights` ended."""
        return "converged"

    def decide(self, gradients: TaskGradients, context: BalancerContext) -> BalancingResult:
        """Weight the rows by what `weights` returns for their Gramian."""
        return gradients.weigh(
            partial(self.weights, context=context), lambda: self.status, self.random(context)
        )


class GradientBalancer(RowBalancer):
    """A balancer that combines the task gradients themselves.

    Its scope is "shared" or "features".

    Attributes:
        granularity: What `combine` receives at a time. "whole": the rows over all parameters,
            concatenated. "parameter": the rows of one parameter (with the scope "features", of one
            map), which `BalancerContext.place` names, as methods that act per layer need it.
            "element": any part of the rows, because each coordinate of the result depends on that
            coordinate of the rows only.
        constant_columns: Whether the rows have the same columns in every step, as a state of (P,)
            needs it, such as a running mean of rows: all shared parameters in order, frozen or not,
            with zeros where no present task reaches. Otherwise they are those that a task reaches
            in this step, which change with phases, freezing and partial labels. Only for the scope
            "shared" and the granularity "whole". The answer counts wherever it is not zero, also
            where no task reaches; but what is frozen stays.
    """

    granularity: Granularity = "whole"
    constant_columns: bool = False
    _columns: int | None = None

    @abc.abstractmethod
    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the direction of the update.

        Args:
            rows: (K, P) task gradients, in the order of `context.present`; not to be edited.
            context: What is known of the step, passed by keyword; None outside a training loop.

        Returns:
            (P,).
        """

    def head_weights(self, context: BalancerContext | None = None) -> Tensor | None:
        """Return the weights of the tasks' gradients at their heads; called after `combine`.

        Args:
            context: What is known of the step; None outside a training loop.

        Returns:
            (K,) in the order of `context.present`; None: all are 1.
        """
        return None

    def decide(self, gradients: TaskGradients, context: BalancerContext) -> BalancingResult:
        """Use the direction that `combine` returns."""
        self.check_columns()

        def combine(rows: Tensor, place: Place | None) -> Tensor:
            if self.constant_columns:
                self._check_count(rows.shape[1])
            context.place = place if self.granularity == "parameter" else None
            return self.combine(rows, context=context)

        result = gradients.combine(
            combine,
            self.granularity != "whole",
            partial(self.head_weights, context=context),
            self.constant_columns,
        )
        context.place = None
        return result

    def check_columns(self) -> None:
        """Refuse constant columns where there are none.

        Raises:
            UsageError: It asks for them with another scope than "shared", or in parts.
        """
        if not self.constant_columns:
            return
        name = type(self).__name__
        if self.scope != "shared":
            raise UsageError(
                f"balancer: {name} keeps values for each coordinate of the gradients "
                f"(constant_columns), and with the scope {self.scope!r} these are others in every "
                "step; use the scope 'shared'"
            )
        if self.granularity != "whole":
            raise UsageError(
                f"balancer: {name} keeps values for each coordinate of the gradients "
                f"(constant_columns) and must see them together; its granularity is "
                f"{self.granularity!r}, not 'whole'"
            )

    def _check_count(self, columns: int) -> None:
        if self._columns not in (None, columns):
            raise UsageError(
                f"balancer: {type(self).__name__} keeps values for each of {self._columns} shared "
                f"numbers, and now there are {columns}; in a loop of your own, hand backward the "
                "same shared_params in every step"
            )
        self._columns = columns
