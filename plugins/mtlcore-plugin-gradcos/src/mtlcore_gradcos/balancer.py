"""Gating of auxiliary tasks by the cosine of their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mtlcore.balancing import BalancerContext, Solution, SolvedBalancer
from mtlcore.balancing.solvers import Array, unit_diagonal
from mtlcore.data import Batch
from mtlcore.tasks import Task, refuse_unknown_tasks


class GradCos(SolvedBalancer):
    """Gradients of auxiliary tasks as far as they agree with the main one (Du et al. 2018).

    With the main task m, shared parameters learn by `g_m + sum_a w_a g_a` (arXiv 1812.02224):
    weighted, `w_a = max(0, cos(g_m, g_a))` (Algorithm 1); otherwise `w_a` is 1 where the cosine is
    not negative, and 0 elsewhere (Algorithm 2). So no auxiliary task works against the main one,
    and the trunk stops where the main task's gradient vanishes. Auxiliary tasks beside one another
    are not compared. Heads weigh 1: that of an auxiliary task keeps learning.

    The update has the scale of the sum of the losses where tasks agree. In a step in which the main
    task has no labels or no gradient, there is no cosine: auxiliary tasks weigh 0 at the shared
    parameters, and `status` is "degenerate".

    Args:
        main: name of the main task; unset: the first one of the run. Outside of a run, the first
            row.
        weighted: whether the weight is the cosine, or 1 where that is not negative.

    Raises:
        UsageError: The run has no such task.
    """

    def __init__(self, *, main: str | None = None, weighted: bool = True) -> None:
        super().__init__()
        self._main, self._weighted = main, weighted

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Check the name of the main task.

        Raises:
            UsageError: The run has no such task.
        """
        refuse_unknown_tasks("balancer.main", () if self._main is None else (self._main,), tasks)

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        main = 0 if context is None else self._place(context)
        weights = np.zeros(len(gramian))
        if main is None or gramian[main, main] <= 0:
            return Solution(np.stack([weights, np.ones_like(weights)]), "degenerate")
        cosines = unit_diagonal(gramian)[0][main]
        weights = np.maximum(cosines, 0.0) if self._weighted else (cosines >= 0).astype(float)
        weights[main] = 1.0
        return Solution(np.stack([weights, np.ones_like(weights)]))

    def _place(self, context: BalancerContext) -> int | None:
        """Return the number of the main task's row; None if it has none."""
        main = context.tasks[0] if self._main is None else self._main
        return context.present.index(main) if main in context.present else None
