"""What the values of a label may be, and in which unit they are learnt.

This is the one place where a sample's numbers become those of a kind.

`collate` passes every label of every dataset through here. What a loss or a metric would compute
from a value outside its kind's range is finite and wrong: the cross-entropy of an edge of 255 falls
without end, and takes the shared weights with it.

Values of a regression are learnt in standard deviations from the mean of the training labels: a
price in dollars would drown a share between 0 and 1, and a network's first predictions are near 0.
`MultiTaskModel.predict` returns them in the task's unit, `Learner.loss_of` computes losses in the
standard one.
"""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from mtlcore.tasks import Task

__all__ = ["TargetUnits", "outside_kind", "values_of_kind"]

# Scaling and resampling round: what is over by no more than this is set to 0 or 1.
_ROUNDING = 1e-4
_UNIT = (0.998, 1.002)  # squared lengths of normals that are left as they are
_NO_LENGTH = 1e-6


def values_of_kind(
    task: Task, target: Tensor, valid: Tensor, safe: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a label in its task's data type, with the safe value where it is not valid.

    Valid values must be: class numbers whole and in range; depths above 0; edges, saliency and
    labels of a multilabel task in [0, 1]; all others finite. Normals are made unit vectors, and are
    not valid where they have no length. Nor are classes that the task ignores.

    Args:
        task: whose label it is.
        target: of shape `task.target_shape(...)`, of any real data type.
        valid: boolean, of shape `task.valid_shape(...)`.
        safe: of the target's shape, in the task's data type.

    Returns:
        The target and its mask.

    Raises:
        ValueError: a valid value is not one of the kind; the message continues
            "FILE: TASK label ...".
    """
    if target.is_complex():
        raise ValueError(f"is {target.dtype}; real numbers were expected")
    mask = valid if target.shape == valid.shape else valid.unsqueeze(0)
    if task.dtype == "int64":
        classes = _classes(task, target, mask, safe)
        if task.ignored:
            valid = valid & ~torch.isin(classes, torch.tensor(task.ignored))
            classes = torch.where(valid, classes, safe)
        return classes, valid
    target = _filled(target, mask, safe)
    low, high = _extent(target)
    if not math.isfinite(low + high):
        raise ValueError(
            "is NaN or infinite where it is marked valid (declare such values as invalid; "
            'dataset.toml: invalid = ["nan", "inf", "-inf"])'
        )
    if task.values == "positive" and low <= 0:
        raise ValueError(
            f"is {low:g} where {task.kind} is above 0: a value that means no measurement is no "
            f"label (dataset.toml: invalid = {low:g}, as the file holds it); else mend scale and "
            "offset"
        )
    if task.values == "share" and (low < 0 or high > 1):
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            raise ValueError(_not_a_share(task, low, high))
        target = target.clamp(0, 1)
    if task.values == "direction" and target.dim() == 3:
        return _directions(target, valid, safe)
    return target, valid


def outside_kind(task: Task, target: Tensor, valid: Tensor) -> Tensor:
    """Return the valid values of a label that its kind does not have; none where all are right.

    `values_of_kind` refuses a label with such values and tells the first one; this finds all.

    Args:
        task: whose label it is.
        target: of shape `task.target_shape(...)`, of any real data type.
        valid: boolean, of shape `task.valid_shape(...)`.

    Returns:
        The values, (N,), in the target's data type.
    """
    mask = (valid if target.shape == valid.shape else valid.unsqueeze(0)).expand_as(target)
    values = target[mask]
    if task.dtype == "int64":
        return values[(values != values.round()) | (values < 0) | (values >= task.channels)]
    values = values.to(getattr(torch, task.dtype))
    wrong = ~values.isfinite()
    if task.values == "positive":
        wrong |= values <= 0
    if task.values == "share":
        wrong |= (values < -_ROUNDING) | (values > 1 + _ROUNDING)
    return values[wrong]


@final
class TargetUnits(nn.Module):
    """Mean and standard deviation of a task's values; 0 and 1 until they are fitted.

    Args:
        channels: of the task.

    Attributes:
        mean: (channels,) float32, a buffer.
        deviation: (channels,) float32, a buffer.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, standard: Tensor) -> Tensor:
        """Return values (B, channels, ...) in the task's unit."""
        mean, deviation = self._of_rank(standard)
        return standard * deviation + mean

    def standard(self, values: Tensor) -> Tensor:
        """Return values (B, channels, ...) of the task's unit in standard deviations."""
        mean, deviation = self._of_rank(values)
        return (values - mean) / deviation

    def _of_rank(self, values: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (values.dim() - 2))
        return self.mean.view(shape), self.deviation.view(shape)


def _filled(target: Tensor, mask: Tensor, safe: Tensor) -> Tensor:
    """Return the target in the data type of the safe values, which it has where it is not valid."""
    target = target.to(safe.dtype)
    # Where nothing is missing, looking is a twentieth of the time of choosing.
    if np.count_nonzero(mask.numpy()) == mask.numel():
        return target
    return torch.where(mask, target, safe)


def _extent(values: Tensor) -> tuple[float, float]:
    """Return the least and the greatest value; NaN twice if there is a NaN."""
    if not values.numel():
        return 0.0, 0.0
    low, high = torch.aminmax(values)
    return low.item(), high.item()


def _classes(task: Task, target: Tensor, mask: Tensor, safe: Tensor) -> Tensor:
    if target.is_floating_point():
        target = torch.where(mask, target, 0)
        odd = target[target != target.round()]  # NaN as well
        if len(odd):
            raise ValueError(
                f"{odd[0].item():g} is no class number; class numbers are whole, from 0 to "
                f"{task.channels - 1}"
            )
    if not target.is_floating_point() or bool(target.isfinite().all()):
        target = _filled(target, mask, safe)
        low, high = _extent(target)
        if low >= 0 and high < task.channels:
            return target
        wrong = f"{low if low < 0 else high:.0f}"
    else:
        wrong = "infinity"
    raise ValueError(
        f"{wrong} is out of range; the task has classes 0 to {task.channels - 1}: map a value that "
        f'stands for a class to it (dataset.toml: values = {{{wrong} = "its class"}}), and declare '
        f"as invalid only what means no label (invalid = {wrong})"
    )


def _not_a_share(task: Task, low: float, high: float) -> str:
    wrong = low if low < -_ROUNDING else high
    remedy = "scale what the file holds to that range"
    for most in (255, 65535):  # of 8 and of 16 bits
        if low >= 0 and most / 2 < high <= most:
            remedy = f"divide it by {most} (dataset.toml: scale = {1 / most!r})"
    return (
        f"is {wrong:g} where {task.kind} is from 0 to 1: {remedy}, or declare a value that means "
        f"no label as invalid (invalid = {wrong:g})"
    )


def _directions(target: Tensor, valid: Tensor, safe: Tensor) -> tuple[Tensor, Tensor]:
    squared = torch.from_numpy(np.einsum("chw,chw->hw", target.numpy(), target.numpy()))
    low, high = _extent(squared)
    if _UNIT[0] <= low and high <= _UNIT[1]:
        return target, valid
    exact = target.double()  # the squares of single precision overflow, or vanish
    length = torch.linalg.vector_norm(exact, dim=0)
    known = length > _NO_LENGTH
    unit = torch.where(known, exact / length.clamp_min(_NO_LENGTH), safe.double())
    return unit.to(target.dtype), valid & known
