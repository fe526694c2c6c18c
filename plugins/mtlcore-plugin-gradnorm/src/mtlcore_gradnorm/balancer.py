"""GradNorm as a balancer of Gramians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GramianBalancer
from mtlcore.errors import MtlError, UsageError
from mtlcore.ranges import LearningRate, NonNegative


class GradNorm(GramianBalancer):
    """Gradient normalisation (Chen et al., ICML 2018, arXiv 1711.02257, Algorithm 1).

    Losses have weights w_i that learn. At the last shared layer, `G_i = w_i |g_i|` is the length of
    a task's gradient, and `r_i`, its loss in units of the first one over the mean of that over the
    tasks, says how slowly it trains. The weights descend, by one plain gradient step,

        sum_i | G_i - mean_j(G_j) r_i^alpha |    with the second term held constant,

    whose derivative is `sign(.) |g_i|`, and are then divided such that their sum stays. The step of
    the network is taken by the weights from before. They begin at 1, so that the scale is that of
    the sum of the losses, and weigh heads too, being those of losses.

    A step that would make a weight negative makes it 0, from where it comes back: the paper says
    nothing, and a negative weight would drive a loss up. The weights of the tasks that have labels
    in a step keep their sum; an absent one keeps its weight. A task whose first loss is 0 counts
    as one that trains as slowly as the mean.

    Args:
        alpha: how much slow tasks are pulled; 1.5 for NYUv2, 0.12 for the toy problem in the paper.
        lr: length of the step of the weights.

    Raises:
        UsageError: a setting is negative.
    """

    scope = "last_shared"

    def __init__(self, *, alpha: NonNegative = 1.5, lr: LearningRate = 0.025) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("lr", lr)):
            if not value >= 0:
                raise UsageError(f"balancer.{name}: {value} is below 0")
        self._alpha, self._lr = alpha, lr
        self._known: dict[str, float] = {}
        self._first: dict[str, float] = {}

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the (2, K) weights: those of the losses, at the trunk and at the heads."""
        if context is None:
            return torch.ones(2, len(gramian), dtype=torch.float64)
        known = [self._known.get(task, 1.0) for task in context.present]
        return torch.tensor([known, known], dtype=torch.float64)

    def after_step(self, context: BalancerContext) -> None:
        """Move the weights, if the step had a Gramian.

        Raises:
            MtlError: a loss is negative, and its rate of training is undefined.
        """
        negative = [task for task, loss in context.losses.items() if loss < 0]
        if negative:
            raise MtlError(
                f"balancer gradnorm: the loss of {', '.join(negative)} is negative, and cannot be "
                "compared with its first value; choose another loss for it"
            )
        for task, loss in context.losses.items():
            self._first.setdefault(task, loss)
        if context.gramian is not None:
            self._move(context.present, context.gramian, context.losses)

    def reset(self) -> None:
        self._known, self._first = {}, {}

    def current_weights(self) -> dict[str, float]:
        return dict(self._known)

    def get_extra_state(self) -> dict[str, Any]:
        return {"weights": self._known, "first": self._first}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._known, self._first = dict(state["weights"]), dict(state["first"])

    def _move(self, tasks: Sequence[str], gramian: Tensor, losses: dict[str, float]) -> None:
        norms = gramian.diagonal().clamp(min=0).sqrt()
        weights = norms.new_tensor([self._known.get(task, 1.0) for task in tasks])
        rates = norms.new_tensor(
            [losses[t] / self._first[t] if self._first[t] > 0 else torch.nan for t in tasks]
        )
        measured = rates[~rates.isnan()]
        mean = measured.mean() if len(measured) else measured.new_ones(())
        relative = torch.where(rates.isnan() | (mean <= 0), 1.0, rates / mean)
        lengths = weights * norms
        targets = lengths.mean() * relative**self._alpha
        moved = (weights - self._lr * (lengths - targets).sign() * norms).clamp(min=0)
        total = moved.sum()
        if total > 0:
            new = (moved * (weights.sum() / total)).tolist()
            self._known.update(zip(tasks, new, strict=True))
