"""What a step with gradients per task costs, in steps of a plain sum of losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, BalancingResult, TaskGradients
from mtlcore.distributed import SINGLE_PROCESS
from mtlcore.engine.flops import trial
from mtlcore.features import Boundary, Features
from mtlcore.inputs import Inputs, image_size
from mtlcore.learner import Learner

__all__ = ["price_told"]


def price_told(learner: Learner, inputs: Inputs) -> str | None:
    """Return what `balancer.depth` saves, as a sentence; None where it is not set.

    Operations are counted, as `count_flops` does, and not timed: times of a few steps say little on
    a machine that is not idle.

    Args:
        learner: It is left as it was.
        inputs: Those of a batch of one sample.
    """
    balancing = learner.balancing
    if balancing.estimate is None:
        return None
    balancing.estimate.skip()
    plain = _counted(learner, inputs, _sum_of_losses, separate=False)
    whole = _counted(learner, inputs, _row_per_task, separate=False)
    taken = _counted(learner, inputs, _balanced, separate=balancing.scope == "features")
    where = "features" if balancing.blocks is None else balancing.blocks
    return (
        f"balancer.depth = {where}: a step takes {taken / plain:.2f} times the operations of a "
        f"step without balancer; at all of the trunk it would take {whole / plain:.2f} times"
    )


_Backward = Callable[[Learner, dict[str, Tensor], Features, Boundary | None], None]


def _counted(learner: Learner, inputs: Inputs, backward: _Backward, *, separate: bool) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # late: it imports torch's compiler

    model, tasks = learner.model, list(learner.model.tasks)
    with trial(learner, inputs), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        features, boundary = model.separable_features(inputs, tasks, separate=separate)
        predictions = model.predict(features, tasks, image_size(inputs))
        losses = {task: prediction.sum() for task, prediction in predictions.items()}
        backward(learner, losses, features, boundary)
    return int(counter.get_total_flops())


def _sum_of_losses(
    learner: Learner, losses: dict[str, Tensor], features: Features, boundary: Boundary | None
) -> None:
    _gradients(torch.stack([*losses.values()]).sum(), learner, retain=False)


def _row_per_task(
    learner: Learner, losses: dict[str, Tensor], features: Features, boundary: Boundary | None
) -> None:
    for loss in losses.values():
        _gradients(loss, learner, retain=True)


def _balanced(
    learner: Learner, losses: dict[str, Tensor], features: Features, boundary: Boundary | None
) -> None:
    # Only the main process counts.
    collector = learner.task_gradients(distributed=SINGLE_PROCESS)
    collector.collect_rows(losses, cut=features.cut, boundary=boundary)
    collector.apply(_Even(), BalancerContext(tasks=tuple(losses), present=tuple(losses)))
    for parameter in learner.parameters():
        parameter.grad = None


def _gradients(loss: Tensor, learner: Learner, *, retain: bool) -> None:
    learning = [p for p in learner.model.parameters() if p.requires_grad]
    torch.autograd.grad(loss, learning, retain_graph=retain, allow_unused=True)


@final
class _Even:
    """Weighs all rows alike."""

    def decide(self, gradients: TaskGradients, context: BalancerContext) -> BalancingResult:
        return gradients.weigh(lambda gramian: torch.ones(len(gramian)), lambda: "converged")
