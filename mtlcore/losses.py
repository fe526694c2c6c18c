"""Losses per task and across tasks, and the one rule by which a map becomes a scalar."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import attrs
import torch
from torch import Tensor, nn

from mtlcore.data import Batch
from mtlcore.models import Features

__all__ = [
    "CrossTaskLoss",
    "Loss",
    "Normalisation",
    "ScalarLoss",
    "TaskLosses",
    "reduce_loss",
]

Normalisation = Literal["valid", "sample"]


class Loss(nn.Module, abc.ABC):
    """A loss with a value per element: `Loss(task, **settings)`. The core reduces it."""

    @abc.abstractmethod
    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """A map shaped like the task's mask, or the map and the weight of each element.

        With weights the map is already multiplied by them, and the core divides by their sum.
        Elements that are not valid hold the task's safe value; what comes out for them must be
        finite and is ignored.
        """


class ScalarLoss(nn.Module, abc.ABC):
    """A loss that is not a sum over elements: `ScalarLoss(task, **settings)`."""

    @abc.abstractmethod
    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """A scalar over the valid elements; at least one is valid."""


class CrossTaskLoss(nn.Module, abc.ABC):
    """A loss between tasks: `CrossTaskLoss(tasks, features, **settings)`; may own parameters.

    Its terms are added with weight 1, outside the balancing. What it learns trains with the rest;
    `parameter_groups()` may give it a learning rate ("lr") and a schedule ("schedule") of its own.

    Attributes:
        views: of every training sample that a batch must hold, 1 to 4; a setting may decide it.
    """

    views: int = 1

    @abc.abstractmethod
    def needs(self, batch: Batch, tasks: Sequence[str]) -> Iterable[str]:
        """Those of `tasks` whose heads must run on this batch, labelled or not."""

    @abc.abstractmethod
    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Scalars by the name of their term; none at all where nothing applies."""


@attrs.frozen(kw_only=True)
class TaskLosses:
    """The losses of one batch; scalars stay separate tensors, each with a graph of its own.

    Args:
        raw: per present task its loss.
        balanced: the same after the loss balancers.
        cross: the cross-task terms.
        valid: per present task its mask (view 0).
        count: per present task its number of valid elements.
        maps: per present task its elementwise loss where a balancer asked for maps.
        cut: the backbone's `Features.cut`.
    """

    raw: dict[str, Tensor]
    balanced: dict[str, Tensor]
    cross: dict[str, Tensor] = attrs.field(factory=dict)
    valid: dict[str, Tensor] = attrs.field(factory=dict)
    count: dict[str, int] = attrs.field(factory=dict)
    maps: dict[str, Tensor] = attrs.field(factory=dict)
    cut: tuple[Tensor, ...] = ()


def reduce_loss(
    loss: Loss | ScalarLoss,
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    normalisation: Normalisation = "valid",
) -> tuple[Tensor, Tensor | None]:
    """The scalar of a task and, where it has one, its map.

    "valid": the sum over valid elements divided by the sum of their weights, over the batch.
    "sample": that quotient per sample, summed over samples with labels, divided by the batch
    size, so that a sample without labels counts as zero (MTPSL's convention).

    Args:
        prediction: (B, ...), as the head gives it.
        target: (B, ...), safe values where not valid.
        valid: (B, ...) boolean with at least one True.
    """
    if isinstance(loss, ScalarLoss):
        if normalisation == "valid":
            return loss(prediction, target, valid), None
        terms = [
            loss(prediction[i : i + 1], target[i : i + 1], valid[i : i + 1])
            for i in range(len(valid))
            if bool(valid[i].any())
        ]
        return torch.stack(terms).sum() / len(valid), None
    result = loss.elementwise(prediction, target)
    values, weight = result if isinstance(result, tuple) else (result, None)
    kept = values * valid
    mass = valid.to(values.dtype) if weight is None else weight * valid
    if normalisation == "valid":
        return kept.sum() / mass.sum(), values
    kept, mass = (part.reshape(len(part), -1).sum(1) for part in (kept, mass))
    # A sample without labels is 0 / 1 here, not 0 / 0.
    return (kept / mass.masked_fill(mass == 0, 1)).mean(), values
