"""Fitting the standard unit of a task's values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from mtlcore.data import Batch
from mtlcore.models import MultiTaskModel


@final
class _Moments:
    """Number, mean and sum of squares about the mean, per channel, in double precision."""

    def __init__(self, channels: int) -> None:
        self.number, self.mean, self.squares = torch.zeros(3, channels, dtype=torch.float64)

    def add(self, target: Tensor, valid: Tensor) -> None:
        """Take in values (B, C, ...) where (B, C, ...) or (B, ...) says so."""
        if valid.dim() < target.dim():
            valid = valid.unsqueeze(1).expand_as(target)
        values = target.double().cpu().transpose(0, 1).flatten(1)
        known = valid.cpu().transpose(0, 1).flatten(1)
        number = known.sum(1).double()
        mean = (values * known).sum(1) / number.clamp_min(1)
        squares = ((values - mean.unsqueeze(1)).square() * known).sum(1)
        # Chan et al. 1979: squares about the two means are merged, so that nothing cancels.
        both, apart = (self.number + number).clamp_min(1), mean - self.mean
        self.squares = self.squares + squares + apart.square() * self.number * number / both
        self.mean = self.mean + apart * number / both
        self.number = self.number + number


@torch.no_grad()
def fit_units(model: MultiTaskModel, batches: Iterable[Batch | None]) -> None:
    """Set the units of a model's tasks to mean and deviation of the valid labels of batches.

    A channel without a label keeps what it has; one whose labels are equal has the deviation 1.

    Args:
        model: its `TargetUnits` are set.
        batches: of training samples; None for one without samples.
    """
    found = {
        name: (units, _Moments(len(units.mean)))
        for name in model.tasks
        if (units := model.units_of(name)) is not None
    }
    for batch in batches:
        for name, (_, moments) in found.items() if batch is not None else ():
            assert batch is not None
            moments.add(batch.targets[name], batch.valid[name])
    for units, moments in found.values():
        deviation = (moments.squares / moments.number.clamp_min(1)).sqrt()
        spread = deviation > 1e-9 * moments.mean.abs()
        known = (moments.number > 0).to(units.mean.device)
        fitted = torch.where(spread, deviation, 1.0).to(units.deviation)
        units.mean.copy_(torch.where(known, moments.mean.to(units.mean), units.mean))
        units.deviation.copy_(torch.where(known, fitted, units.deviation))
