"""Plain training: forward, balance, one step of a `torch.optim` optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch.nn import Parameter

from mtlcore.data import Batch
from mtlcore.episodes import LoadedPlan
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

    def __init__(
        self,
        learner: Learner,
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Schedule,
        clip: float | None,
    ) -> None:
        self._update = Update(learner, make, schedule, clip)

    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        """Accumulate gradients over the episodes (micro-batches) of a plan, then update.

        A task's loss in a batch is weighted by the batch's share of the task's valid elements in
        the plan (of the samples, if losses are normalised per sample). The result equals that of
        one large batch for losses that are means over elements and balancers that are affine in
        the losses. It does not for class-weighted losses and, per sample, for a balancer's constant
        term if a batch lacks a task.
        """
        self._update.begin(learner)
        used = [(plan.batches[episode.support], episode.tasks) for episode in plan.episodes]
        shares_and_parts = shares_of(learner, used)
        for (batch, tasks), (shares, part) in zip(used, shares_and_parts, strict=True):
            # One of several processes may have no sample of a small batch.
            if not len(batch):
                continue
            losses = learner(batch, tasks, separate=self._update.separates)
            if not self._update.add(learner, losses, shares, part):
                break
        return self._update.finish(
            learner, partial(_reevaluate, learner, used, [shares for shares, _ in shares_and_parts])
        )

    def reset_state(self, parameters: Iterable[Parameter]) -> None:
        self._update.reset_state(parameters)

    def after_evaluation(self, metrics: MetricValues) -> None:
        self._update.after_evaluation(metrics)

    def state_dict(self) -> dict[str, Any]:
        return self._update.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._update.load_state_dict(state)


def _reevaluate(
    learner: Learner,
    used: Sequence[tuple[Batch, Sequence[str]]],
    shares: Sequence[Mapping[str, float]],
) -> dict[str, float]:
    """Return the mean losses of the present tasks at the parameters as they are now."""
    sums = dict.fromkeys(learner.tasks, 0.0)
    for (batch, tasks), share in zip(used, shares, strict=True):
        if len(batch):
            for task, loss in learner.evaluate_losses(batch, tasks).items():
                sums[task] += share[task] * loss
    means = learner.distributed.all_reduce_floats([*sums.values()])
    found = dict(zip(sums, means, strict=True))
    return {task: found[task] for task in learner.context.present}


def shares_of(
    learner: Learner, used: Sequence[tuple[Batch, Sequence[str]]]
) -> list[tuple[dict[str, float], float]]:
    """Return, for each batch, its share of every present task and its share of all samples.

    The share of a task is counted in valid elements, or in samples if losses are normalised per
    sample. Batches of other ranks count too.

    Args:
        learner: Says how losses are normalised, and which processes train together.
        used: The batches of a step, each with the tasks that learn from it.
    """
    if len(used) == 1 and learner.distributed.world_size == 1:
        batch, tasks = used[0]
        return [(dict.fromkeys(batch.present(tasks), 1.0), 1.0)]
    masses = [
        {
            task: float(len(batch) if learner.normalisation == "sample" else batch.count[task])
            for task in tasks
        }
        for batch, tasks in used
    ]
    totals = [sum(mass.get(task, 0.0) for mass in masses) for task in learner.tasks]
    *totals, samples = learner.distributed.all_reduce_floats(
        [*totals, sum(len(batch) for batch, _ in used)]
    )
    of = dict(zip(learner.tasks, totals, strict=True))
    # No process may have a sample that it can read.
    return [
        (
            {task: mass[task] / of[task] for task in batch.present(tasks)},
            len(batch) / max(samples, 1),
        )
        for (batch, tasks), mass in zip(used, masses, strict=True)
    ]
