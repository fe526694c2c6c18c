"""Auto-Lambda as a balancer of Gramians with a validation batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GramianBalancer, Tentative
from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.ranges import LearningRate, Positive
from mtlcore.tasks import Task, refuse_unknown_tasks

# Of Adam, torch's defaults, which the authors' code leaves as they are.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


class AutoLambda(GramianBalancer):
    """Auto-Lambda (Liu et al., TMLR 2022, arXiv 2202.03091): weights learnt one step ahead.

    The weights should make the primary tasks' losses on other samples small after a step:

        theta'(lambda) = theta - alpha grad sum_i lambda_i L_i,    min over lambda of
        F(lambda) = sum over primary j of L_j^val(theta'(lambda)),

    with the learning rate alpha of the run. Its slope is a matrix of inner products, of gradients
    on the training batch at theta and on the validation batch at theta':

        dF / dlambda_i = -alpha sum_j <grad L_i(theta), grad L_j^val(theta')>,

    over all parameters, those of heads among them. In each step the weights first move along it, by
    Adam, and then weigh the step: trunk and heads alike. They are free to be negative.

    The products are those of whole steps, so accumulation and several processes change nothing. The
    step ahead is a plain gradient step.

    An absent task keeps its weight, and so do all in a step without a primary task. The scale is
    that of `initial` at first: a tenth of the plain sum.

    Args:
        primary: names of the tasks that count; all if empty.
        lr: learning rate of the weights. The authors' scripts have 1e-4 for NYUv2 and 3e-5 for
            Cityscapes.
        initial: the weights at first; they may become negative.
        split: "train" or "val", where the validation batch is drawn from. A run that learns its
            weights from "val" is no longer judged by samples that it has not seen.
    """

    validation: Literal["train", "val"] | None = "train"

    def __init__(
        self,
        *,
        primary: tuple[str, ...] = (),
        lr: LearningRate = 1e-4,
        initial: Positive = 0.1,
        split: Literal["train", "val"] = "train",
    ) -> None:
        super().__init__()
        self._primary, self._lr, self._initial = primary, lr, initial
        self.validation = split
        # Per task: lambda, the means of its slope and of their squares, and the number of updates.
        self._state = Tentative()

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Check the names of the tasks.

        Raises:
            UsageError: a primary task is none of the run's.
        """
        refuse_unknown_tasks("balancer.primary", self._primary, tasks)

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Move the weights, and return them for trunk and heads.

        Raises:
            UsageError: there is no validation batch, or no learning rate to look ahead with.
        """
        if context is None or context.validation_products is None:
            raise UsageError(
                "balancer auto-lambda: it needs the losses of a validation batch; in a loop of "
                "your own, call backward(losses, shared, context, validation=...)"
            )
        if not math.isfinite(context.learning_rate):
            raise UsageError(
                "balancer auto-lambda: it looks a step ahead and needs its length; set "
                "context.learning_rate to that of your optimizer"
            )
        self._state.discard()  # in somebody's own loop, a step may be left out without a word
        first = gramian.new_tensor([self._initial, 0.0, 0.0, 0.0])
        kept = [self._state.get(task, like=gramian) for task in context.present]
        old = torch.stack([first if state is None else state for state in kept])
        chosen = [not self._primary or task in self._primary for task in context.present]
        if any(chosen):
            counts = gramian.new_tensor(chosen)
            applied = torch.stack([old[:, 0], old[:, 0]])
            shared, own = context.validation_products(applied, context.learning_rate)
            old = self._adam(old, -context.learning_rate * (shared @ counts + own * counts))
            for task, state in zip(context.present, old, strict=True):
                self._state.propose(task, state)
        return torch.stack([old[:, 0], old[:, 0]])

    def after_step(self, context: BalancerContext) -> None:
        self._state.commit()

    def reset(self) -> None:
        self._state.reset()

    def _adam(self, state: Tensor, slopes: Tensor) -> Tensor:
        """Return the tasks' states after a step of torch's Adam.

        Args:
            state: (K, 4) lambda, both moments, number of updates.
            slopes: (K,) derivatives by lambda.
        """
        weights, means, squares, steps = state.unbind(1)
        steps = steps + 1
        means = _BETAS[0] * means + (1 - _BETAS[0]) * slopes
        squares = _BETAS[1] * squares + (1 - _BETAS[1]) * slopes.square()
        roots = (squares / (1 - _BETAS[1] ** steps)).sqrt() + _EPSILON
        weights = weights - self._lr * means / (1 - _BETAS[0] ** steps) / roots
        return torch.stack([weights, means, squares, steps], 1)
