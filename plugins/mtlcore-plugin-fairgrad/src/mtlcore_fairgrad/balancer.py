"""FairGrad as a balancer."""

from __future__ import annotations

from typing import Annotated

from mtlcore.balancing import BalancerContext, Solution, SolvedBalancer
from mtlcore.balancing.solvers import Array, bargain
from mtlcore.errors import UsageError
from mtlcore.ranges import Positive, Range


class FairGrad(SolvedBalancer):
    """Fair resource allocation (Ban & Ji, ICML 2024, arXiv 2402.15638): alpha-fair gains.

    Each task's gain is `g_i . d`, and the update maximises the sum of their alpha-fair utilities
    `gain^(1 - alpha) / (1 - alpha)` (eq. 4). Its weights are the `w > 0` that solve (Proposition 1)

        M w = w^(-1 / alpha)    element by element,    d = sum_i w_i g_i,

    for the Gramian M. With `alpha = 1` that is Nash-MTL's equation; a larger alpha favours the
    tasks that gain least. Newton's method (`mtlcore.balancing.solvers.bargain`) solves it to
    rounding. The update does not scale with the losses: all of them times s is an update times
    `s^((1 - alpha) / (1 + alpha))`. Heads weigh 1.

    A task whose gradient is zero has the weight 0 and does not affect the others. Where gradients
    cancel, as opposite ones do, there is no solution: the update is orthogonal to these gradients,
    and the other tasks share what is left. `status` is "degenerate" then.

    Args:
        alpha: fairness, from 0.1 (nearly the plain sum) to 10 (nearly the worst task's gain);
            2 in the authors' experiments.
        rescale: multiply the update by the number of tasks, as in the authors' code.
        max_norm: largest norm of the shared update, after rescaling; unset: no limit.

    Raises:
        UsageError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        alpha: Annotated[float, Range(ge=0.1, le=10)] = 2.0,
        rescale: bool = False,
        max_norm: Positive | None = None,
    ) -> None:
        super().__init__()
        if not 0.1 <= alpha <= 10:
            raise UsageError(f"balancer.alpha: {alpha} is not from 0.1 to 10")
        if max_norm is not None and not max_norm > 0:
            raise UsageError(f"balancer.max_norm: {max_norm} is not above 0")
        self._alpha, self._rescale, self._max_norm = alpha, rescale, max_norm

    def solve(self, gramian: Array, context: BalancerContext | None) -> Solution:
        agreed = bargain(gramian, self._alpha)
        factor = float(len(gramian)) if self._rescale else 1.0
        if self._max_norm is not None and agreed.norm * factor > self._max_norm:
            factor = self._max_norm / agreed.norm
        return Solution(factor * agreed.weights, "converged" if agreed.solved else "degenerate")
