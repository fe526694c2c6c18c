"""Plain training: forward, balance, one step of a `torch.optim` optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing import floats, not_finite
from mtlcore.data import Batch
from mtlcore.episodes import LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.learner import Learner
from mtlcore.metrics import MetricValues
from mtlcore.optimizers.contract import Optimizer, StepReport
from mtlcore.optimizers.schedules import Schedule
from mtlcore.optimizers.update import Update


@final
class GradientDescent(Optimizer):
    """Plain training: forward, balance, one step of a `torch.optim` optimizer.

    Args:
        learner: The module to train.
        make: Builds the `torch.optim` optimizer from parameter groups.
        schedule: The schedule of the learning rate; a group may bring its own under the key
            "schedule".
        clip: The largest norm of all gradients together; None: no limit.
    """

    separates_batches = True
    reevaluates = True

    def __init__(
        self,
        learner: Learner,
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Schedule,
        clip: float | None,
    ) -> None:
        self._update = Update(learner, make, schedule, clip)
        self._batches = learner.balancing.batches
        self._validates = learner.balancing.validation is not None

    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        """Accumulate gradients over the episodes (micro-batches) of a plan, then update.

        A task's loss in a batch is weighted by the batch's share of the task's valid elements in
        the plan (of the samples, if losses are normalised per sample). The result equals that of
        one large batch for losses that are means over elements and balancers that are affine in
        the losses. It does not for class-weighted losses and, per sample, for a balancer's constant
        term if a batch lacks a task.

        Raises:
            UsageError: The plan has not the batches that the balancer compares.
        """
        used = [(plan.batches[episode.support], episode.tasks) for episode in plan.episodes]
        groups = [episode.group for episode in plan.episodes]
        self._check(groups, plan)
        self._update.begin(learner)
        shares_and_parts = shares_of(learner, used, groups)
        for (batch, tasks), (shares, part), group in zip(
            used, shares_and_parts, groups, strict=True
        ):
            # One of several processes may have no sample of a small batch.
            if not len(batch):
                continue
            losses = learner(batch, tasks, separate=self._update.separates)
            if not self._update.add(learner, losses, shares, part, group=group):
                break
        return self._update.finish(
            learner,
            partial(_reevaluate, learner, used, [shares for shares, _ in shares_and_parts]),
            partial(self._validation_losses, learner, plan) if plan.validation else None,
        )

    def reset_state(self, parameters: Iterable[Parameter]) -> None:
        self._update.reset_state(parameters)

    def after_evaluation(self, metrics: MetricValues) -> None:
        self._update.after_evaluation(metrics)

    def state_dict(self) -> dict[str, Any]:
        return self._update.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._update.load_state_dict(state)

    def _check(self, groups: Sequence[int], plan: LoadedPlan) -> None:
        """Refuse a plan that has not the batches that the balancer compares.

        Raises:
            UsageError: It has not.
        """
        if {*groups} != {*range(self._batches)}:
            raise UsageError(
                f"the plan of a step has {len({*groups})} independent batches, and the balancer "
                f"needs {self._batches}: number the episodes of each by Episode.group, from 0"
            )
        if self._validates and not plan.validation:
            raise UsageError(
                "the plan of a step has no validation batch, and the balancer needs one: hand its "
                "episodes over as LoadedPlan.validation"
            )

    def _validation_losses(
        self, learner: Learner, plan: LoadedPlan
    ) -> Iterator[Mapping[str, Tensor]]:
        """Yield the losses of the parts of the validation batch, times the loss scale."""
        used = [(plan.batches[episode.support], episode.tasks) for episode in plan.validation]
        for (batch, tasks), (shares, _) in zip(used, shares_of(learner, used), strict=True):
            if not len(batch):
                continue
            with learner.no_trace(batch.inputs):
                losses = learner.supervised_losses(batch, tasks)
                problem = not_finite({"validation loss": floats(losses)[0]})
                if problem is not None:
                    self._update.refuse(problem)
                yield {t: loss * (shares[t] * self._update.scale) for t, loss in losses.items()}


def _reevaluate(
    learner: Learner,
    used: Sequence[tuple[Batch, Sequence[str]]],
    shares: Sequence[Mapping[str, float]],
) -> dict[str, float]:
    """Return the mean losses of the present tasks at the parameters as they are now."""
    sums = dict.fromkeys(learner.tasks, 0.0)
    masses = dict(sums)
    for (batch, tasks), share in zip(used, shares, strict=True):
        if len(batch):
            for task, loss in learner.evaluate_losses(batch, tasks).items():
                sums[task] += share[task] * loss
                masses[task] += share[task]
    found = learner.distributed.all_reduce_floats([*sums.values(), *masses.values()])
    totals, of = (
        dict(zip(sums, part, strict=True)) for part in (found[: len(sums)], found[len(sums) :])
    )
    return {task: totals[task] / of[task] for task in learner.context.present}


def shares_of(
    learner: Learner,
    used: Sequence[tuple[Batch, Sequence[str]]],
    groups: Sequence[int] | None = None,
) -> list[tuple[dict[str, float], float]]:
    """Return, for each batch, its share of every present task and its share of all samples.

    The share of a task is counted in valid elements, or in samples if losses are normalised per
    sample. Batches of other ranks count too. Of several independent batches, each has the same
    share of a task as every other that has a label of it, and its parts have shares of that.

    Args:
        learner: Says how losses are normalised, and which processes train together.
        used: The batches of a step, each with the tasks that learn from it.
        groups: For each, the number of the independent batch that it is a part of; None: there
            is one.
    """
    if len(used) == 1 and learner.distributed.world_size == 1:
        batch, tasks = used[0]
        return [(dict.fromkeys(batch.present(tasks), 1.0), 1.0)]
    groups = groups or [0] * len(used)
    # By independent batch and task: mass, and number of labels.
    masses = {(group, task): 0.0 for group in sorted({*groups}) for task in learner.tasks}
    labels = dict(masses)
    for (batch, tasks), group in zip(used, groups, strict=True):
        for task in tasks:
            masses[group, task] += _mass(learner, batch, task)
            labels[group, task] += batch.count[task]
    *sums, samples = learner.distributed.all_reduce_floats(
        [*masses.values(), *labels.values(), sum(len(batch) for batch, _ in used)]
    )
    masses = dict(zip(masses, sums, strict=False))
    labels = dict(zip(labels, sums[len(masses) :], strict=True))
    having = {task: sum(labels[group, task] > 0 for group in {*groups}) for task in learner.tasks}
    return [
        (
            {
                task: _mass(learner, batch, task) / masses[group, task] / having[task]
                for task in batch.present(tasks)
            },
            len(batch) / max(samples, 1),  # no process may have a sample that it can read
        )
        for (batch, tasks), group in zip(used, groups, strict=True)
    ]


def _mass(learner: Learner, batch: Batch, task: str) -> float:
    return float(batch.count[task] if learner.normalisation == "valid" else len(batch))
