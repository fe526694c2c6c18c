"""FAMO as a balancer of losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mtlcore.balancing import BalancerContext, LossBalancer, floats
from mtlcore.data import Batch
from mtlcore.errors import MtlError, UsageError
from mtlcore.ranges import LearningRate, NonNegative
from mtlcore.tasks import Task, refuse_unknown_tasks

# Keeps logarithms of losses from minus infinity; the authors' value.
_SMALL = 1e-8
# Of Adam, torch's defaults, which the authors' code leaves as they are.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class FAMO(LossBalancer):
    """Fast adaptive multitask optimization (Liu et al., NeurIPS 2023, arXiv 2306.03792).

    All losses are to fall at the same relative rate, without a gradient per task. With
    `z = softmax(xi)` and `D_i = L_i - b_i + 1e-8`, the weights are

        w_i = z_i / D_i / c,    c = sum_j z_j / D_j,

    which sum to 1, and are the gradient of `sum_i z_i log D_i` over c (Algorithm 1). They weigh
    trunk and heads alike. After the step the same samples are evaluated again, and a step of Adam
    moves xi along `J' (log D_before - log D_after)`, J being the derivative of the softmax: a task
    whose loss fell least gets more weight. That costs a forward pass per step.

    Weights and xi are of the present tasks; the others keep theirs. What is reported as balanced
    losses is `w_i L_i`, whose gradient is the method's and whose sum is not its objective.

    Losses must not be below b. The result is not affine in the losses, so accumulated gradients
    differ from those of one large batch.

    Args:
        lr: learning rate of xi.
        weight_decay: gamma, of xi, as Adam's L2 penalty, which pulls z towards equal parts. The
            authors' scripts have 0.001 for NYUv2, CelebA and QM9, and 0.01 for Cityscapes.
        min_losses: task name -> b, the least value that its loss can have; 0 for others.
    """

    affine = False
    reevaluates = True

    def __init__(
        self,
        *,
        lr: LearningRate = 0.025,
        weight_decay: NonNegative = 0.001,
        min_losses: dict[str, NonNegative] | None = None,
    ) -> None:
        super().__init__()
        self._lr, self._decay = lr, weight_decay
        self._least = dict(min_losses or {})
        # Per task: xi, the means of its gradient and of their squares, and the number of updates.
        self._logits: dict[str, tuple[float, float, float, int]] = {}

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Make room for the tasks.

        Raises:
            UsageError: there is a least loss of a task that the run does not have.
        """
        refuse_unknown_tasks("balancer.min_losses", self._least, tasks)
        for task in tasks:
            self._logits.setdefault(task.name, (0.0, 0.0, 0.0, 0))

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """Weigh the losses.

        Raises:
            MtlError: a loss is below its least value; the distance has no logarithm.
        """
        weights = self._weights(floats(losses)[0])
        return {task: loss * weights[task] for task, loss in losses.items()}

    def after_step(self, context: BalancerContext) -> None:
        """Move xi by what the step did to the losses.

        Raises:
            UsageError: the context does not tell the losses after the step.
        """
        if context.reevaluate is None:
            raise UsageError(
                "balancer famo: it needs the losses after each step; set context.reevaluate to a "
                "function that computes them before after_step(context)"
            )
        before, after = context.losses, context.reevaluate()
        change = {
            task: math.log(self._distance(task, loss)) - math.log(self._distance(task, after[task]))
            for task, loss in before.items()
        }
        shares = self._shares(before)
        mean = sum(shares[task] * x for task, x in change.items())
        # A loss that is not finite after the step says nothing; the next step will be skipped.
        if math.isfinite(mean):
            for task, x in change.items():
                self._adam(task, shares[task] * (x - mean))

    def current_weights(self) -> dict[str, float]:
        """Return z, the part of each task in the weighted rate."""
        return self._shares(self._logits)

    def reset(self) -> None:
        self._logits = dict.fromkeys(self._logits, (0.0, 0.0, 0.0, 0))

    def get_extra_state(self) -> dict[str, Any]:
        return {task: list(state) for task, state in self._logits.items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._logits = {task: (x, m, v, int(n)) for task, (x, m, v, n) in state.items()}

    def _shares(self, tasks: Iterable[str]) -> dict[str, float]:
        """Return the softmax of xi over some tasks."""
        logits = {task: self._logits[task][0] for task in tasks}
        highest = max(logits.values(), default=0.0)
        powers = {task: math.exp(x - highest) for task, x in logits.items()}
        total = sum(powers.values())
        return {task: power / total for task, power in powers.items()}

    def _distance(self, task: str, loss: float) -> float:
        """Return D; a loss that fell below its least value counts as being there."""
        return max(loss - self._least.get(task, 0.0), 0.0) + _SMALL

    def _weights(self, losses: Mapping[str, float]) -> dict[str, float]:
        below = [task for task, loss in losses.items() if loss < self._least.get(task, 0.0)]
        if below:
            raise MtlError(
                f"balancer famo: the loss of {', '.join(below)} is below its least value, which "
                "is 0 unless balancer.min_losses says otherwise; choose another loss for it"
            )
        shares = self._shares(losses)
        rates = {task: shares[task] / self._distance(task, loss) for task, loss in losses.items()}
        # All losses may be infinite; the step will be skipped.
        total = sum(rates.values()) or math.nan
        return {task: rate / total for task, rate in rates.items()}

    def _adam(self, task: str, gradient: float) -> None:
        """Take a step of torch's Adam on one task's xi."""
        x, mean, square, steps = self._logits[task]
        gradient, steps = gradient + self._decay * x, steps + 1
        mean = _BETAS[0] * mean + (1 - _BETAS[0]) * gradient
        square = _BETAS[1] * square + (1 - _BETAS[1]) * gradient**2
        root = math.sqrt(square / (1 - _BETAS[1] ** steps)) + _EPSILON
        x -= self._lr * mean / (1 - _BETAS[0] ** steps) / root
        self._logits[task] = (x, mean, square, steps)
