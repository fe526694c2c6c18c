"""Task affinities, measured beside any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, final

import attrs
import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.data import Batch
from mtlcore.episodes import LoadedPlan
from mtlcore.learner import Learner
from mtlcore.metrics import MetricValues
from mtlcore.optimizers import Optimizer, StepReport, floats, shares_of
from mtlcore.ranges import Count, Nested, Positive

#: A batch, the tasks that learn from it, and its share of the step's loss of each.
_Part = tuple[Batch, Sequence[str], Mapping[str, float]]


@final
class Affinity(Optimizer):
    """Trains as another optimizer does, and measures what one task's step does to other tasks.

    Fifty, Amid, Zhao, Yu, Anil and Finn, NeurIPS 2021 (arXiv 2109.04617), eq. 1. Before every
    `every`-th step, on its samples, the shared parameters theta take a step for task i alone, which
    is then taken back; the affinity of i to j is the part of j's loss that it removes:

        theta_i = theta - rate * d L_i / d theta
        Z(i -> j) = (L_j(theta) - L_j(theta_i)) / |L_j(theta)|

    The losses are those of the tasks, early predictions included, before any balancer and without
    terms between tasks; heads stay as they are. Passes are made in training mode with the same
    random numbers, and leave no trace: a run with this optimizer trains as one without, bit for
    bit. `metrics.jsonl` has Z as the metric "affinity/j" of task i.

    A measurement costs a backward pass per task and a forward pass per task and one more, and
    memory for a gradient of the shared parameters per task.

    Args:
        learner: what to train.
        optimizer: what trains it.
        every: steps from one measurement to the next; the paper finds ten as good as one.
        rate: of the step that is tried; unset: the learning rate that the last step had.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        optimizer: Annotated[Callable[[Learner], Optimizer], Nested("optimizers")],
        every: Count = 10,
        rate: Positive | None = None,
    ) -> None:
        self._inner = optimizer(learner)
        self.needs_queries = self._inner.needs_queries
        self.separates_batches = self._inner.separates_batches
        self.reevaluates = self._inner.reevaluates
        self._every, self._rate = every, rate
        self._last_rate = 0.0

    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        """Measure, if it is time, and take the other optimizer's step."""
        rate = self._last_rate if self._rate is None else self._rate
        measured: dict[str, dict[str, float]] = {}
        if learner.context.step % self._every == 0 and rate > 0:
            measured = _affinities(learner, plan, rate)
        report = self._inner.step(learner, plan)
        if report.skipped is not None:
            return report
        self._last_rate = report.learning_rate
        return attrs.evolve(report, measured={**report.measured, **measured})

    def reset_state(self, parameters: Iterable[Parameter]) -> None:
        self._inner.reset_state(parameters)

    def after_evaluation(self, metrics: MetricValues) -> None:
        self._inner.after_evaluation(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._inner.state_dict(), "rate": self._last_rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state["optimizer"])
        self._last_rate = float(state["rate"])


def _affinities(learner: Learner, plan: LoadedPlan, rate: float) -> dict[str, dict[str, float]]:
    """Return "affinity/j" -> i -> Z(i -> j), for the tasks that have a label in the step."""
    used = [(plan.batches[episode.support], episode.tasks) for episode in plan.episodes]
    parts = [
        (batch, tasks, shares)
        for (batch, tasks), (shares, _) in zip(used, shares_of(learner, used), strict=True)
    ]
    shared = [p for p in learner.model.shared_parameters() if p.requires_grad]
    before, gradients = _gradients(learner, parts, shared)
    affinities: dict[str, dict[str, float]] = {}
    for source, gradient in gradients.items():
        with _moved(shared, gradient, -rate):
            after = _losses(learner, parts)
        for target, loss in before.items():
            change = (loss - after[target]) / abs(loss) if loss else math.nan
            # What is not finite has nothing to say of the tasks; the step itself will be skipped.
            if target != source and math.isfinite(change):
                affinities.setdefault(f"affinity/{target}", {})[source] = change
    return affinities


def _gradients(
    learner: Learner, parts: Sequence[_Part], shared: Sequence[Parameter]
) -> tuple[dict[str, float], dict[str, list[Tensor]]]:
    """Return the step's loss of each task and its gradient, over all parts and processes."""
    present = _present(learner, parts)
    totals = dict.fromkeys(present, 0.0)
    gradients = {task: [torch.zeros_like(parameter) for parameter in shared] for task in present}
    for batch, tasks, shares in parts:
        if not len(batch):
            continue
        # The graph must not outlive the pass, whose buffers are put back.
        with learner.no_trace(batch.inputs):
            losses = learner.supervised_losses(batch, tasks)
            for number, (task, loss) in enumerate(losses.items(), 1):
                weighted, more = loss * shares[task], number < len(losses)
                found = torch.autograd.grad(weighted, shared, retain_graph=more, allow_unused=True)
                for total, gradient in zip(gradients[task], found, strict=True):
                    if gradient is not None:
                        total += gradient
        for task, value in floats(losses)[0].items():
            totals[task] += shares[task] * value
    for gradient_of_task in gradients.values():
        learner.distributed.all_reduce(gradient_of_task)
    return _summed(learner, totals), gradients


def _losses(learner: Learner, parts: Sequence[_Part]) -> dict[str, float]:
    """Return the step's loss of each task at the parameters as they are."""
    totals = dict.fromkeys(_present(learner, parts), 0.0)
    for batch, tasks, shares in parts:
        if len(batch):
            for task, value in learner.evaluate_losses(batch, tasks).items():
                totals[task] += shares[task] * value
    return _summed(learner, totals)


def _present(learner: Learner, parts: Sequence[_Part]) -> list[str]:
    """Return the tasks with a label in any part of any process, in the run's order."""
    here = [any(task in shares for _, _, shares in parts) for task in learner.tasks]
    anywhere = learner.distributed.any_of(here)
    return [task for task, present in zip(learner.tasks, anywhere, strict=True) if present]


def _summed(learner: Learner, totals: Mapping[str, float]) -> dict[str, float]:
    sums = learner.distributed.all_reduce_floats(list(totals.values()))
    return dict(zip(totals, sums, strict=True))


@contextmanager
def _moved(
    parameters: Sequence[Parameter], direction: Sequence[Tensor], factor: float
) -> Iterator[None]:
    """Move parameters, and put back exactly what was there."""
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            torch._foreach_add_(list(parameters), list(direction), alpha=factor)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), saved)
