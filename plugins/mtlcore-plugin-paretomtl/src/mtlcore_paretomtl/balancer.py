"""Pareto MTL as a balancer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import combinations_with_replacement
from math import comb
from typing import Annotated

import numpy as np

from mtlcore.balancing import BalancerContext, Solution, SolvedBalancer
from mtlcore.balancing.solvers import Array, min_norm_point
from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.ranges import Fraction, Natural, Range
from mtlcore.tasks import Task


@cache
def preference_vectors(tasks: int, at_least: int) -> Array:
    """Return unit vectors that divide the space of losses evenly.

    For two tasks there are `at_least` of them, at even angles from (1, 0) to (0, 1), as in the
    authors' code. For more tasks there is one for each way to hand out n equal parts to the tasks,
    with the smallest n that gives enough; `sin(pi / 2 h / n)` for h parts makes the angles even
    along every edge.

    Args:
        tasks: K, their number.
        at_least: the smallest number of vectors.

    Returns:
        (N, K), from the vector of the first task alone to that of the last.
    """
    parts = 1
    while tasks > 1 and comb(parts + tasks - 1, parts) < at_least:
        parts += 1
    hands = combinations_with_replacement(range(tasks), parts)
    held = np.stack([np.bincount(hand, minlength=tasks) for hand in hands])
    vectors = np.sin(np.pi / 2 * held / parts)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


class ParetoMTL(SolvedBalancer):
    """Pareto multi-task learning (Lin et al., NeurIPS 2019, arXiv 1912.12854, section 4).

    Preference vectors `u_j` divide the space of losses into regions. A run looks for a trade-off in
    the region of one of them, `u_k`: where the vector L of losses has its largest product with
    `u_k`, so that each `G_j = (u_j - u_k) . L` is at most 0. A constraint is active if it is
    violated, `G_j > 0`, as in the authors' code; the paper adds those that hold by less than a
    small number, which it does not give. Each step follows the shortest convex combination

    * of the gradients of active constraints alone, in the initial phase, which ends for good when
      all hold, and at the latest after the fraction `initial` of the run;
    * of these and of all task gradients afterwards: no task and no active constraint gets worse, to
      first order. Without an active one it is the descent direction of MGDA.

    Since `grad G_j = sum_i (u_j - u_k)_i g_i`, it is a weighted sum of task gradients, and a
    function of their Gramian; weights may be negative, in the initial phase above all. They are
    scaled such that their absolute values sum to K, so that a learning rate keeps its meaning; the
    authors' training code does so in the second phase only. The losses compared are the raw ones,
    whatever other balancers do to them.

    Two cases are not in the paper. If a step lacks a task, L is not known and no constraint is
    active. If there is no context, or none of its losses is known, no constraint is active either,
    and `status` is "degenerate".

    Args:
        preferences: how many parts the losses' space has, 2 or more; with more than two tasks, at
            least as many.
        preference: which of them, from 0 (the first task's loss may be large, the others are to be
            small) to the last (that of the last task); None: the first of those in the middle.
        initial: the part of the run that the initial phase takes at most, 0 to 1.
        weigh_heads: weigh what belongs to one task alone, such as its head, in the same way, as
            the authors' code does.

    Raises:
        UsageError: a setting is out of its range, which for `preference` depends on the tasks.
    """

    def __init__(
        self,
        *,
        preferences: Annotated[int, Range(ge=2, le=10_000)] = 5,
        preference: Natural | None = None,
        initial: Fraction = 0.2,
        weigh_heads: bool = False,
    ) -> None:
        super().__init__()
        if preferences < 2:
            raise UsageError(f"balancer.preferences: {preferences} is below 2")
        if not 0 <= initial <= 1:
            raise UsageError(f"balancer.initial: {initial} is not between 0 and 1")
        self._preferences, self._preference = preferences, preference
        self._initial, self._weigh_heads = initial, weigh_heads
        self._found = False

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        self._differences(len(tasks))

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        """Return the weights of the tasks that are `context.present`, for its `losses`.

        Returns:
            (K,); with `weigh_heads` (2, K), whose second row holds those of the heads.
            "degenerate" without losses.
        """
        rows = self._active(context, len(gramian))
        if not (len(rows) and self._searching(context)):
            rows = np.concatenate([np.eye(len(gramian)), rows])
        weights: Array = min_norm_point(rows @ gramian @ rows.T) @ rows
        total = float(np.abs(weights).sum())
        # Weights of constraints that cancel those of tasks are rounding, and no direction.
        if total > 1e-9:
            weights = weights * (len(weights) / total)
        return Solution(
            np.stack([weights, weights]) if self._weigh_heads else weights,
            "converged" if context and context.losses else "degenerate",
        )

    def after_step(self, context: BalancerContext) -> None:
        complete = set(context.present) == set(context.tasks)
        if complete and not len(self._active(context, len(context.tasks))):
            self._found = True

    def reset(self) -> None:
        self._found = False

    def get_extra_state(self) -> dict[str, bool]:
        return {"found": self._found}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        self._found = state["found"]

    def _searching(self, context: BalancerContext | None) -> bool:
        return not self._found and context is not None and not context.reached(self._initial)

    def _active(self, context: BalancerContext | None, count: int) -> Array:
        """(n, count): per active constraint what its gradient takes of each task's."""
        nothing: Array = np.empty((0, count))
        if context is None or not context.losses or count != len(context.tasks):
            return nothing
        places = [context.tasks.index(task) for task in context.present]
        differences = self._differences(count)[:, places]
        losses = np.array([context.losses[task] for task in context.present])
        active: Array = differences[differences @ losses > 0]
        return active

    def _differences(self, count: int) -> Array:
        """(N, count): all `u_j - u_k`."""
        vectors = preference_vectors(count, self._preferences)
        chosen = self._preference
        if chosen is None:
            chosen = int(vectors.sum(axis=1).round(12).argmax())
        elif not 0 <= chosen < len(vectors):
            raise UsageError(
                f"balancer.preference: {chosen} is not from 0 to {len(vectors) - 1}; there are "
                f"{len(vectors)} preferences for {count} tasks (balancer.preferences)"
            )
        differences: Array = vectors - vectors[chosen]
        return differences
