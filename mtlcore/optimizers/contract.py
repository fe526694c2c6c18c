"""What an optimizer is: a plan in, one update out."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from torch.nn import Parameter

from mtlcore.balancing import BalancingResult
from mtlcore.episodes import LoadedPlan
from mtlcore.learner import Learner
from mtlcore.metrics import MetricValues


@attrs.frozen(kw_only=True)
class StepReport:
    """What a step did.

    Args:
        losses: Raw loss per present task, of its head's prediction alone.
        cross: Value per cross-task term.
        balancing: Weights, cosines and solver status.
        learning_rate: Learning rate of the first parameter group.
        early: Weighted sum of the losses of early predictions per present task; empty where the
            backbone makes none.
        measured: What else is to be recorded: metric -> task, or "" for none -> value. A record has
            the mean over the steps that measured it.
        skipped: Why the step was skipped, naming the task; None if it was taken.
    """

    losses: dict[str, float]
    cross: dict[str, float] = attrs.field(factory=dict)
    balancing: BalancingResult = attrs.field(factory=BalancingResult)
    learning_rate: float = math.nan
    early: dict[str, float] = attrs.field(factory=dict)
    measured: Mapping[str, Mapping[str, float]] = attrs.field(factory=dict)
    skipped: str | None = None


class Optimizer(abc.ABC):
    """Turns a loaded plan into one update: `Optimizer(learner, **settings)`.

    A skipped step leaves parameters, buffers and every state as they were.

    Attributes:
        needs_queries: Whether every episode of its plans must have a query batch.
        separates_batches: Whether it keeps the gradients of a plan's independent batches apart
            (`Episode.group`) and lets balancers compare those of its validation batch
            (`LoadedPlan.validation`), as `Balancer.batches` and `Balancer.validation` ask for.
        reevaluates: Whether it tells balancers the losses after a step, on the same samples, as
            `Balancer.reevaluates` asks for.
    """

    needs_queries: bool = False
    separates_batches: bool = False
    reevaluates: bool = False

    @abc.abstractmethod
    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        """Learn from one plan; `learner.context` says where in the run it stands.

        After a step that was taken, `learner.context` also holds the tasks that were present and
        their mean losses over all processes: balancers and the episode sampler learn from them.
        """

    @abc.abstractmethod
    def reset_state(self, parameters: Iterable[Parameter]) -> None:
        """Drop the state, such as moments, of parameters that were re-initialised."""

    @abc.abstractmethod
    def after_evaluation(self, metrics: MetricValues) -> None:
        """Learn from an evaluation on the validation split, as a plateau schedule does.

        Args:
            metrics: Task -> metric -> value, "loss" among them, of every task that learns or has
                stopped early; the same in every process. A value is NaN where nothing was valid.
        """

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on, as a tree of tensors and JSON values."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
