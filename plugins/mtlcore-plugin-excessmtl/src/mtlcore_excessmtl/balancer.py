"""ExcessMTL as a balancer of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GradientBalancer, Tentative
from mtlcore.errors import UsageError
from mtlcore.ranges import NonNegative

# Of the authors' code; it is added to sums of squares, within the root.
_EPSILON = 1e-7
_SCALAR = torch.zeros((), dtype=torch.float64)


class ExcessMTL(GradientBalancer):
    """Robust weights by excess risks (He et al., ICML 2024, arXiv 2402.02009, Algorithm 1).

    A task's excess risk, how far its loss is above the least that is possible, is estimated from
    its gradient and a diagonal second-order matrix, as AdaGrad has it:

        E_i = sum_p g_ip^2 / sqrt(S_ip + 1e-7),    S_ip = sum over steps of g_ip^2.

    In units of its first value it moves the task's weight, `w_i = w_i exp(eta E_i / E_i(0))`, and
    weights are divided such that their sum stays. So tasks that have most left to gain weigh more,
    and, unlike with losses, noisy labels make none heavier. The update is `sum_i w_i g_i`, and
    heads weigh `w_i` too, as the weights are those of the losses. They begin at 1, so that the
    scale is that of the sum of the losses; the first step of a task only measures E_i(0).

    The weights of the tasks with labels in a step keep their sum; an absent one keeps its weight
    and its S. A task without a gradient does not move its weight, and measures E_i(0) when it has
    one. The state is as large as K gradients. Without a context all weights are 1.

    Args:
        eta: how fast weights move.

    Raises:
        UsageError: `eta` is negative.
    """

    affine = False
    constant_columns = True

    def __init__(self, *, eta: NonNegative = 0.01) -> None:
        super().__init__()
        if not eta >= 0:
            raise UsageError(f"balancer.eta: {eta} is below 0")
        self._eta = eta
        self.squares, self.first, self.logs = Tentative(), Tentative(), Tentative()
        self._weights: Tensor | None = None

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the (P,) update for (K, P) task gradients."""
        self._weights = None
        if context is None:
            return rows.sum(0)
        pairs = list(zip(context.present, rows, strict=True))
        # One transfer from a GPU for all tasks.
        excess = torch.stack([self._excess(task, row) for task, row in pairs]).cpu()
        growth = torch.stack(list(map(self._growth, context.present, excess)))
        before = torch.stack([self._log(task) for task in context.present])
        after = before.logsumexp(0) + (before + growth).log_softmax(0)
        for task, value in zip(context.present, after, strict=True):
            self.logs.propose(task, value)
        self._weights = after.exp()
        return torch.mv(rows.T, self._weights.to(rows))

    def head_weights(self, context: BalancerContext | None = None) -> Tensor | None:
        """Return the (K,) weights of the losses."""
        return self._weights

    def after_step(self, context: BalancerContext) -> None:
        for state in self._states():
            state.commit()

    def reset(self) -> None:
        for state in self._states():
            state.reset()

    def current_weights(self) -> dict[str, float]:
        return {task: float(self._log(task).exp()) for task in self.logs.get_extra_state()}

    def _states(self) -> Sequence[Tentative]:
        return (self.squares, self.first, self.logs)

    def _log(self, task: str) -> Tensor:
        found = self.logs.get(task, like=_SCALAR)
        return _SCALAR if found is None else found

    def _excess(self, task: str, row: Tensor) -> Tensor:
        """Return E_i of a row, float64 on its device."""
        squares = row.square()
        old = self.squares.get(task, like=row)
        total = squares if old is None else old + squares
        self.squares.propose(task, total)
        return (squares / (total + _EPSILON).sqrt()).sum(dtype=torch.float64)

    def _growth(self, task: str, excess: Tensor) -> Tensor:
        """Return `eta E_i / E_i(0)`; 0 in the step that measures E_i(0)."""
        first = self.first.get(task, like=_SCALAR)
        if first is not None:
            return self._eta * excess / first
        if bool(excess > 0):
            self.first.propose(task, excess)
        return _SCALAR
