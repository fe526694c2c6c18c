"""MoCo as a balancer of gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GradientBalancer, Tentative
from mtlcore.balancing.solvers import Array, as_gramian, simplex_projection
from mtlcore.errors import UsageError
from mtlcore.ranges import NonNegative, Share

_SCALAR = torch.zeros((), dtype=torch.float64)


class MoCo(GradientBalancer):
    """Multi-objective gradient correction (Fernando et al., ICLR 2023, arXiv 2210.12624).

    The bias of MGDA's weights in stochastic gradients is reduced by running means of these: in each
    step, with y and lambda from the step before (Algorithm 1),

        y_i = y_i - beta (y_i - g_i),
        lambda = Proj(lambda - gamma (Y Y' + rho I) lambda),    d = sum_i lambda_i y_i,

    where Proj gives the nearest point of the simplex. At first y is 0 and all lambda are equal.
    Weights sum to 1, so the update has the scale of a mean, not of the sum of the losses. How fast
    lambda moves depends on the scale of the losses. Heads weigh 1.

    The tasks that have labels in a step share the weight that they have together, and their lambda
    is projected onto that; an absent one keeps its y and its lambda and has no part in the update.
    The state is as large as K gradients. Without a context nothing is kept: y is `beta g` and
    lambda equal before the one step.

    Args:
        beta: how fast the running means follow the gradients.
        gamma: how far lambda moves.
        rho: how strongly lambda is drawn to equal weights.

    Raises:
        UsageError: a setting is out of its range.
    """

    affine = False
    constant_columns = True

    def __init__(
        self, *, beta: Share = 0.1, gamma: NonNegative = 0.1, rho: NonNegative = 0.1
    ) -> None:
        super().__init__()
        if not 0 < beta <= 1:
            raise UsageError(f"balancer.beta: {beta} is not above 0 and at most 1")
        for name, value in (("gamma", gamma), ("rho", rho)):
            if not value >= 0:
                raise UsageError(f"balancer.{name}: {value} is below 0")
        self._beta, self._gamma, self._rho = beta, gamma, rho
        self.tracked, self.shares = Tentative(), Tentative()

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the (P,) update for (K, P) task gradients."""
        tracked = self._beta * rows
        if context is None:
            return self._combined(tracked, self._moved(None, tracked))
        for mean, task in zip(tracked, context.present, strict=True):
            old = self.tracked.get(task, like=mean)
            if old is not None:
                mean.add_(old, alpha=1 - self._beta)
            self.tracked.propose(task, mean)
        # In units of equal shares, so that tasks that join later begin as the others did.
        shares = np.array([self._share(task) for task in context.present])
        total = float(shares.sum())
        weights = self._moved(shares / total if total > 0 else None, tracked)
        for task, weight in zip(context.present, weights, strict=True):
            self.shares.propose(task, torch.tensor(total * weight, dtype=torch.float64))
        return self._combined(tracked, weights)

    def after_step(self, context: BalancerContext) -> None:
        self.tracked.commit()
        self.shares.commit()

    def reset(self) -> None:
        self.tracked.reset()
        self.shares.reset()

    def current_weights(self) -> dict[str, float]:
        shares = {task: self._share(task) for task in self.shares.get_extra_state()}
        total = sum(shares.values())
        return {task: share / total for task, share in shares.items()}

    def _share(self, task: str) -> float:
        found = self.shares.get(task, like=_SCALAR)
        return 1.0 if found is None else float(found)

    @staticmethod
    def _combined(tracked: Tensor, weights: Array) -> Tensor:
        return torch.mv(tracked.T, torch.from_numpy(weights).to(tracked))

    def _moved(self, weights: Array | None, tracked: Tensor) -> Array:
        """Return lambda after one step; None: these tasks had no weight, and begin equal."""
        wide = tracked.float() if tracked.dtype in (torch.float16, torch.bfloat16) else tracked
        products = as_gramian(wide @ wide.T)
        if weights is None:
            weights = np.full(len(products), 1 / len(products))
        slope = products @ weights + self._rho * weights
        return simplex_projection(weights - self._gamma * slope)
