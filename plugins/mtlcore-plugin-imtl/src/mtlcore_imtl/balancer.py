"""The two halves of IMTL: balanced losses, and balanced gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext, LossBalancer, Scope, Solution, SolvedBalancer
from mtlcore.balancing.solvers import Array, equal_angles, unit_diagonal, without_zeros
from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.ranges import LearningRate, Range
from mtlcore.tasks import Task


class IMTLL(LossBalancer):
    """Impartial learning of losses (Liu et al., ICLR 2021, section 3.2): learnt scales `e^s`.

    The losses become `e^(s_i) L_i - s_i` with an s per task, learnt beside the network. For fixed
    losses the minimum has `e^(s_i) = 1 / L_i`: all scaled losses are 1. Unlike uncertainty
    weighting it assumes no distribution and no halves. The scale weighs the heads too.

    A task without labels in a step does not change its s.

    Args:
        initial: initial value of s.
        lr: learning rate of s; unset: the run's.
    """

    # e^s fits into single precision.
    def __init__(
        self,
        *,
        initial: Annotated[float, Range(ge=-80, le=80)] = 0.0,
        lr: LearningRate | None = None,
    ) -> None:
        super().__init__()
        self._initial, self._lr = initial, lr
        self._keys: dict[str, str] = {}
        self.log_scale = nn.ParameterDict()

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        for task in tasks:
            self._keys[task.name] = task.key
            if task.key not in self.log_scale:
                self.log_scale[task.key] = nn.Parameter(torch.tensor(self._initial))

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Return a group without weight decay, which would pull the scales towards 1."""
        group: dict[str, Any] = {"params": self.log_scale.values(), "weight_decay": 0.0}
        yield group if self._lr is None else {**group, "lr": self._lr}

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        scales = {task: self.log_scale[self._keys[task]] for task in losses}
        return {task: scales[task].exp() * loss - scales[task] for task, loss in losses.items()}

    def current_weights(self) -> dict[str, float]:
        return {
            task: math.exp(float(self.log_scale[key].detach())) for task, key in self._keys.items()
        }


class IMTLG(SolvedBalancer):
    """Impartial learning of gradients (Liu et al., ICLR 2021, section 3.1): equal projections.

    The update `d = sum_i w_i g_i` with `sum w = 1` has the same projection on every task's
    gradient: `u_i . d` is equal for all unit gradients `u_i`. With the cosines C between them and
    `C b = 1`, the weights are `b_i / |g_i|`, divided by their sum. They may be negative. So may
    the sum be, by which they are divided: then d points against every task, which is what the
    paper's equation says; such steps have the `status` "degenerate".

    Weights sum to 1, so the update has the scale of a mean, not of the sum of the losses. Heads
    weigh 1. The paper takes the gradients at the features, `scope = "features"`.

    A task whose gradient is zero has the weight 0 and does not affect the others. With gradients
    such as opposite ones only `d = 0` has equal projections: weights are zero. Both are
    "degenerate". Where gradients depend on one another, such as equal ones, the shortest b is
    taken.

    Args:
        scope: "shared", the gradients of all shared parameters, or "features", those of the maps
            that heads read.

    Raises:
        UsageError: `scope` has another value.
    """

    def __init__(self, *, scope: Literal["shared", "features"] = "shared") -> None:
        super().__init__()
        if scope not in ("shared", "features"):
            raise UsageError(f"balancer.scope: {scope!r} is neither 'shared' nor 'features'")
        self.scope: Scope = scope

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        return without_zeros(gramian, _equal_projections)


def _equal_projections(gramian: Array) -> Solution:
    cosines, norms = unit_diagonal(gramian)
    found = equal_angles(cosines)
    if found.status != "converged":
        return Solution(np.zeros_like(norms), "degenerate")
    weights = found.weights / norms
    total = float(weights.sum())
    if total == 0:
        return Solution(np.zeros_like(norms), "degenerate")
    return Solution(weights / total, "converged" if total > 0 else "degenerate")
