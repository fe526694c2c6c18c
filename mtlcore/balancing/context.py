"""What a balancer is told of a step, and what comes of its answer."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import attrs
import torch
from torch import Tensor

from mtlcore.balancing.asked import Asked
from mtlcore.balancing.depth import EstimateError
from mtlcore.data import Batch
from mtlcore.distributed import SINGLE_PROCESS, Distributed

Scope = Literal["shared", "features", "last_shared"]
Status = Literal["converged", "degenerate", "not finite"]
Granularity = Literal["whole", "parameter", "element"]

MISSING = {
    "features": "balancer: the scope 'features' compares gradients at the maps that heads read, "
    "and here is none that learns: unfreeze the backbone, or name them (`features` of `backward`)",
    "last_shared": "balancer: the scope 'last_shared' needs a backbone that names its last shared "
    "parameters (`last_shared_parameters`), not frozen; this one has none",
}
"""What to say where a scope has nothing to compare."""


class ValidationProducts(Protocol):
    """Compares the step's gradients with those of the losses of the validation batch."""

    def __call__(self, weights: Tensor | None = None, rate: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return inner products of training and validation gradients, float64 on the CPU.

        The validation losses are those of single tasks, before balancers of losses; each call
        computes them and their gradients. Nothing is learnt from them.

        Args:
            weights: What the step would apply, as `GramianBalancer.weights` returns it.
            rate: The learning rate of a plain gradient step by these weights, which is taken back;
                the validation gradients are those at the parameters it leads to. 0: at the
                current ones.

        Returns:
            (K, K) whose entry i, j is the product of the training gradient of `present[i]` and the
            validation gradient of `present[j]` at the shared parameters, and (K,) the products of
            both gradients of each task at parameters of its own. A task without a label in the
            validation batch has a gradient of zeros.
        """


@attrs.frozen(kw_only=True, eq=False)
class Place:
    """One parameter or map, of whose gradients a balancer sees the rows.

    Args:
        number: Of a parameter, its number among all shared ones, learning or not: the same in every
            step of a run. Of a map at the features, its number in the step, which says nothing
            about other steps.
        values: The parameter, or the map (batch first), without a graph; not to be edited.
    """

    number: int
    values: Tensor


@attrs.define(kw_only=True)
class BalancerContext:
    """What a balancer may know of the step it works in.

    Args:
        tasks: All tasks of the run.
        generator: The only source of randomness, on the CPU and the same on every rank.
        step: Number of the step, from 0.
        epoch: Number of the epoch, from 0.
        progress: The fraction of the run that is done, 0 to 1. Who reads it learns otherwise in a
            longer run, which is noted; who only waits for a point asks `reached`.
        present: The tasks that have a loss in this step; rows of gradients, and of the Gramian,
            stand in this order.
        losses: Mean raw loss per present task, over all processes; empty until gradients are
            balanced.
        maps: Elementwise losses of view 0, per task, if the balancer `needs_maps`.
        batch: The batch of these maps.
        gramian: In `after_step`, the (K, K) Gramian of this step's rows, summed over micro-batches
            and processes, in float64 on the CPU. None if no Gramian was asked for: without a
            balancer of Gramians, and between two updates (`balancer.update_every`).
        gramians: Where a step has several independent batches (`Balancer.batches`), the
            (B, B, K, K) inner products of the gradients of each two of them: `gramians[0, 1]` is
            `J1 J2'`. A task without a label in a batch has a row of zeros there. There in `weights`
            and, unless no weights were asked for, in `after_step`; None otherwise.
        labelled_batches: With `gramians`, (K,): in how many of the batches each task has a label.
        validation_products: In `weights`, the validation batch (`Balancer.validation`); else None.
        learning_rate: That of the first parameter group in this step.
        reevaluate: In `after_step`, computes the present tasks' mean losses again, on the same
            samples at the updated parameters. None if the optimizer cannot.
        distributed: The processes that train together; each sees its own part of a step.
        place: In `combine` of a balancer whose granularity is "parameter", what its rows are
            gradients of; None otherwise.
        asked: Who asked how much of the run is done.
    """

    tasks: tuple[str, ...]
    generator: torch.Generator | None = None
    step: int = 0
    epoch: int = 0
    _progress: float = attrs.field(default=0.0, alias="progress")
    present: tuple[str, ...] = ()
    losses: dict[str, float] = attrs.field(factory=dict)
    maps: Mapping[str, Tensor] = attrs.field(factory=dict)
    batch: Batch | None = None
    gramian: Tensor | None = None
    gramians: Tensor | None = None
    labelled_batches: Tensor | None = None
    validation_products: ValidationProducts | None = None
    learning_rate: float = math.nan
    reevaluate: Callable[[], dict[str, float]] | None = None
    distributed: Distributed = SINGLE_PROCESS
    place: Place | None = None
    asked: Asked = attrs.field(factory=Asked)

    @property
    def progress(self) -> float:
        """The fraction of the run that is done, 0 to 1; the module that reads it is noted."""
        return self.progress_for(_module_of_caller())

    @progress.setter
    def progress(self, fraction: float) -> None:
        self._progress = fraction

    def progress_for(self, by: str) -> float:
        """Return the fraction of the run that is done.

        Args:
            by: Who reads it, as people know it, such as the path of a setting.
        """
        self.asked.value(by, self.step)
        return self._progress

    def reached(self, fraction: float, by: str | None = None) -> bool:
        """Return whether at least this fraction of the run is done.

        What only asks this can go on as it was in a run that is made longer before that point.

        Args:
            fraction: Of the run, 0 to 1.
            by: Who asks, as people know it; None: the module that asks.
        """
        answer = self._progress >= fraction
        self.asked.point(by or _module_of_caller(), fraction, self.step, answer)
        return answer


def _module_of_caller() -> str:
    """Return the name of the module that called a function of this one."""
    name: str = sys._getframe(2).f_globals["__name__"]
    return name


@attrs.frozen(kw_only=True)
class BalancingResult:
    """What a step's balancing decided.

    Args:
        weights: Weight of each present task's row in the shared update, summed over independent
            batches; empty for a sum of losses.
        heads: Weight of each present task's gradient at its own parameters; empty if nothing new
            was decided.
        cosines: Cosine of the gradients of each pair of present tasks; empty without a Gramian.
        status: How the balancer's solver ended; after "not finite" the step is skipped.
        problem: What was not finite, naming the task where it is known; None if all was finite.
        gramian: The (K, K) Gramian that decided; None without one.
        error: How far an estimate of the Gramian is off, in a step that verifies it.
    """

    weights: dict[str, float] = attrs.field(factory=dict)
    heads: dict[str, float] = attrs.field(factory=dict)
    cosines: dict[tuple[str, str], float] = attrs.field(factory=dict)
    status: Status = "converged"
    problem: str | None = None
    gramian: Tensor | None = None
    error: EstimateError | None = None

    @classmethod
    def refused(cls, problem: str) -> BalancingResult:
        """Return the result of a step in which something was not finite.

        Args:
            problem: What it was.
        """
        return cls(status="not finite", problem=problem)
