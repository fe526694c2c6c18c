"""DB-MTL as a balancer of gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GradientBalancer, Tentative
from mtlcore.errors import MtlError, UsageError
from mtlcore.ranges import Decay, NonNegative

# A loss below this counts as this much: its logarithm has no bound at 0.
_SMALLEST_LOSS = 1e-20


class DBMTL(GradientBalancer):
    """Dual balancing of losses and gradients (Lin et al. 2023, arXiv 2308.12029, Algorithm 1).

    Losses are balanced by their logarithm, whose gradient is `r_i = g_i / L_i`. Gradients are
    balanced by their length: with running means over the steps

        m_i = beta_t m_i + (1 - beta_t) r_i,    beta_t = beta / t^sigma,

    the update is `max_j |m_j| sum_i m_i / |m_i|`. Means start at 0 and are not corrected for it,
    so that the first updates are short. Heads weigh `1 / L_i`, of the logarithm. The update has the
    scale of the sum of the log losses; it does not change with the scale of a loss.

    A task without labels in a step keeps its mean and has no part in the update; one whose mean is
    zero adds nothing. The state is as large as K gradients. Without a context, or without losses in
    it, losses count as 1, and nothing is kept.

    Args:
        beta: part of the running means that stays.
        sigma: how fast that part falls with the step t, counted from 1.

    Raises:
        UsageError: a setting is out of its range.
    """

    affine = False
    constant_columns = True

    def __init__(self, *, beta: Decay = 0.9, sigma: NonNegative = 0.0) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise UsageError(f"balancer.beta: {beta} is not from 0 to below 1")
        if not sigma >= 0:
            raise UsageError(f"balancer.sigma: {sigma} is below 0")
        self._beta, self._sigma = beta, sigma
        self.means = Tentative()

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the (P,) update for (K, P) task gradients.

        Raises:
            MtlError: a loss is negative; it has no logarithm.
        """
        weights = self.head_weights(context)
        logs = rows if weights is None else rows * weights.to(rows)[:, None]
        keep = self._beta / (1 + (context.step if context else 0)) ** self._sigma
        means = (1.0 - keep) * logs
        if context is not None:
            for mean, task in zip(means, context.present, strict=True):
                old = self.means.get(task, like=mean)
                if old is not None:
                    mean.add_(old, alpha=keep)
                self.means.propose(task, mean)
        lengths = torch.linalg.vector_norm(means, dim=1, dtype=torch.float64)
        factors = torch.where(lengths > 0, lengths.max() / lengths, 0.0)
        return torch.mv(means.T, factors.to(means))

    def head_weights(self, context: BalancerContext | None = None) -> Tensor | None:
        """Return the (K,) derivatives `1 / L_i` of the logarithms."""
        if context is None or not context.losses:
            return None
        losses = [context.losses[task] for task in context.present]
        negative = [task for task in context.present if context.losses[task] < 0]
        if negative:
            raise MtlError(
                f"balancer db-mtl: the loss of {', '.join(negative)} is negative, and has no "
                "logarithm; choose another loss for it"
            )
        return 1.0 / torch.tensor(losses, dtype=torch.float64).clamp_min(_SMALLEST_LOSS)

    def after_step(self, context: BalancerContext) -> None:
        self.means.commit()

    def reset(self) -> None:
        self.means.reset()
