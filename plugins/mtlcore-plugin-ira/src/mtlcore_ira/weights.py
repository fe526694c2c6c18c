"""The rule by which the weights of an auxiliary task's classes move (IRA, eqs. 4, 7, 9, 10)."""

from __future__ import annotations

from typing import Any, Literal, final

import attrs
import torch
from torch import Tensor, nn

EpsMode = Literal["literal", "signed", "clip"]
RatioAux = Literal["unweighted", "weighted"]


@final
@attrs.frozen(kw_only=True)
class Rule:
    """The constants of the rule; what they mean is said at `mtlcore_ira.balancer.IRA`."""

    alpha: float
    betas: tuple[float, float]
    eps: float
    eps_mode: EpsMode
    ratio_aux: RatioAux
    clip: float
    every: int
    smoothing: float

    def away_from_zero(self, change: Tensor) -> Tensor:
        """Return a change of a loss as it enters the ratio; no change becomes eps."""
        if self.eps_mode == "literal":
            return change + self.eps
        sign = torch.copysign(torch.ones_like(change), change)
        if self.eps_mode == "signed":
            return change + sign * self.eps
        return sign * change.abs().clamp_min(self.eps)


@final
class ClassWeights(nn.Module):
    """A weight per class, and all that it is learnt from.

    Everything stays on its device and is updated without asking for a value, so that no update
    waits for the device.

    Args:
        classes: their number.

    Attributes:
        weight: (C,) float64, at least 0.
    """

    weight: Tensor
    first_moment: Tensor
    second_moment: Tensor
    updates: Tensor
    first: Tensor
    last: Tensor
    unit: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        kind = torch.float64
        self.register_buffer("weight", torch.ones(classes, dtype=kind))
        for name in ("first_moment", "second_moment", "updates"):
            self.register_buffer(name, torch.zeros(classes, dtype=kind))
        # Rows: main and auxiliary loss of each class, as first and last seen; NaN before.
        for name in ("first", "last"):
            self.register_buffer(name, torch.full((2, classes), torch.nan, dtype=kind))
        # Sums over the time unit that is being gathered, as `learn` takes them.
        self.register_buffer("unit", torch.zeros(3, classes, dtype=kind))
        self._steps = 0

    def nothing(self) -> Tensor:
        """Return the sums of a step without a valid point; see `learn`."""
        return torch.zeros_like(self.unit)

    @torch.no_grad()
    def reset(self) -> None:
        """Set all weights to 1 and drop what was learnt."""
        for buffer in (self.first_moment, self.second_moment, self.updates, self.unit):
            buffer.zero_()
        self.weight.fill_(1)
        self.first.fill_(torch.nan)
        self.last.fill_(torch.nan)
        self._steps = 0

    @torch.no_grad()
    def learn(self, sums: Tensor, rule: Rule, fixed: bool) -> None:
        """Learn from a step; the weights move at the last step of a time unit.

        Args:
            sums: (3, C) float64; per class the sum of the main loss, of the auxiliary loss, and
                the number of points.
            rule: how they move.
            fixed: whether weights stay as they are (in the warm-up) and losses are only noted.
        """
        self.unit += sums
        self._steps += 1
        if self._steps < rule.every:
            return
        self._move(rule, fixed)
        self.unit.zero_()
        self._steps = 0

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]

    def _move(self, rule: Rule, fixed: bool) -> None:
        main, auxiliary, count = self.unit
        # (1/N) sum over the points of a class, N all points: eq. 4 without w.
        losses = torch.stack([main, auxiliary]) / count.sum().clamp_min(1)
        own = losses[1]
        if rule.ratio_aux == "weighted":
            losses = torch.stack([losses[0], self.weight * own])
        known = ~self.last.isnan().any(0)
        if rule.smoothing:
            mixed = rule.smoothing * self.last + (1 - rule.smoothing) * losses
            losses = torch.where(known, mixed, losses)
        present = (count > 0) & losses.isfinite().all(0)
        if not fixed:
            change = rule.away_from_zero((losses - self.last) / self.first)
            ratio = (change[0] / change[1]).clamp(-rule.clip, rule.clip)
            self._adam(ratio * own, known & present, rule)
        # A loss of 0 is nothing to divide by: such a class begins with its next loss.
        begins = present & ~known & (losses > 0).all(0)
        self.first.copy_(torch.where(begins, losses, self.first))
        self.last.copy_(torch.where(begins | (known & present), losses, self.last))

    def _adam(self, gradient: Tensor, moving: Tensor, rule: Rule) -> None:
        """Eq. 9, for the classes that move."""
        b1, b2 = rule.betas
        first = torch.lerp(gradient, self.first_moment, b1)
        second = torch.lerp(gradient.square(), self.second_moment, b2)
        # Without a bound the ratio of a class may overflow; once in the moments it would stay.
        moving = moving & second.isfinite()
        updates = self.updates + moving
        step = first / (1 - b1**updates) / ((second / (1 - b2**updates)).sqrt() + rule.eps)
        weight = (self.weight - rule.alpha * step).relu()
        self.updates.copy_(updates)
        self.first_moment.copy_(torch.where(moving, first, self.first_moment))
        self.second_moment.copy_(torch.where(moving, second, self.second_moment))
        self.weight.copy_(torch.where(moving, weight, self.weight))
