"""GradDrop as a balancer of gradients, at the features or at the parameters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext, GradientBalancer
from mtlcore.errors import UsageError
from mtlcore.ranges import Fraction


def drop(rows: Tensor, signed: Tensor, draws: Tensor, leak: float) -> Tensor:
    """Keep the gradients of one sign, drawn by how much pulls that way, and sum them up.

    With the positive part p and the negative part m of the values that have the sign, positive ones
    stay where `p / (p + m)` is above the draw, negative ones elsewhere. A value of 0 has no sign
    and is never dropped.

    Args:
        rows: (K, ...) gradients.
        signed: (K, ...) values that can be broadcast over them.
        draws: of the shape of one of these values, from 0 to below 1.
        leak: the part of what is dropped that stays.

    Returns:
        (...).
    """
    positive = signed.clamp(min=0).sum(0)
    whole = signed.abs().sum(0)
    # Nothing pulls: there is nothing to drop.
    purity = torch.where(whole > 0, positive / whole, 0.5)
    dropped = torch.where(purity > draws, signed < 0, signed > 0)
    return torch.where(dropped, leak * rows, rows).sum(0)


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


class GradDrop(GradientBalancer):
    """Gradient sign dropout (Chen et al., NeurIPS 2020, arXiv 2010.06808, Algorithm 1).

    At each coordinate, with the purity `P = (1 + sum_i g_i / sum_i |g_i|) / 2` and a uniform draw
    U, gradients above 0 stay where `P > U`, those below 0 elsewhere, and what stays is summed up.
    So the tasks that remain agree in every coordinate.

    With the scope "shared" coordinates are those of the shared parameters. The mean over the draws
    is exactly the plain sum of the gradients, with the variance p m where p is the sum of the
    positive entries and m that of the negative ones: the method is noise where tasks conflict.

    With the scope "features", as published, one feature of all samples of the batch is a
    coordinate: its value x takes part by its product with the gradient, so that the sign is that of
    `sum_samples x g_i`, and there is one draw for the batch. What stays goes on through the trunk
    in one pass. Micro-batches and processes draw for their own samples. Without a context values
    are not known, and each coordinate is taken by itself.

    Heads weigh 1. It has no state, and one object takes any number of tasks.

    Args:
        leak: the part of dropped gradients that stays.
        scope: "shared", or "features" as published.

    Raises:
        UsageError: a setting has another value.
    """

    affine = False

    def __init__(
        self, *, leak: Fraction = 0.0, scope: Literal["shared", "features"] = "shared"
    ) -> None:
        super().__init__()
        if not 0 <= leak <= 1:
            raise UsageError(f"balancer.leak: {leak} is not from 0 to 1")
        if scope not in ("shared", "features"):
            raise UsageError(f"balancer.scope: {scope!r} is neither 'shared' nor 'features'")
        self._leak = leak
        self.scope = scope
        self.granularity = "element" if scope == "shared" else "parameter"

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        """Return the (P,) update for (K, P) task gradients."""
        place = None if context is None else context.place
        if place is None:
            return drop(rows, rows, self._draws(rows[0], context), self._leak)
        values = place.values
        gradients = rows.view(len(rows), *values.shape)
        signed = (gradients * values).sum(1, keepdim=True, dtype=_wider(rows.dtype))
        draws = self._draws(signed[0], context)
        return drop(gradients, signed, draws, self._leak).flatten()

    def _draws(self, like: Tensor, context: BalancerContext | None) -> Tensor:
        generator = self.random(context)
        device = "cpu" if generator is None else generator.device
        draws = torch.rand(like.shape, generator=generator, dtype=torch.float32, device=device)
        return draws.to(like.device)
