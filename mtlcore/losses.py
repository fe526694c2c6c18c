"""Losses of one task and across tasks, and how elementwise losses are reduced."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import attrs
import torch
from torch import Tensor, nn

from mtlcore.data import Batch
from mtlcore.features import Boundary, Features
from mtlcore.models import StepContext
from mtlcore.teachers import Teacher

__all__ = [
    "CrossTaskLoss",
    "Loss",
    "Normalisation",
    "ScalarLoss",
    "TaskLosses",
    "loss_sums",
    "reduce_loss",
]

Normalisation = Literal["valid", "sample", "labelled"]


class Loss(nn.Module, abc.ABC):
    """A loss with a value per element, made as `Loss(task, **settings)`; see `reduce_loss`."""

    @abc.abstractmethod
    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the loss of each element.

        Args:
            prediction: raw output of the head, (B, task.channels, ...).
            target: `(B, *target_shape)`; the task's safe value where it is not valid.

        Returns:
            A tensor of the shape of the task's mask, `(B, *valid_shape)`; or two such tensors, the
            weighted losses and the weights, and the sum of the losses is divided by the sum of
            the weights. Values where the target is not valid are ignored, but must be finite.
        """


class ScalarLoss(nn.Module, abc.ABC):
    """A loss that is no mean over elements, made as `ScalarLoss(task, **settings)`.

    In evaluation it is asked for one sample at a time, see `loss_sums`.
    """

    @abc.abstractmethod
    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            prediction: raw output of the head, (B, task.channels, ...).
            target: `(B, *target_shape)`.
            valid: `(B, *valid_shape)` boolean, with at least one True.

        Returns:
            A scalar that depends on valid elements alone.
        """


class CrossTaskLoss(nn.Module, abc.ABC):
    """A loss between tasks, made as `CrossTaskLoss(tasks, features, **settings)`.

    Its terms are added to the total with weight 1 and are not balanced. It may have parameters,
    which are trained with the model's; a method `parameter_groups()` may give them their own
    learning rate ("lr") and schedule ("schedule").

    Attributes:
        views: number of views of every training sample in a batch, 1 to 4. The constructor may set
            it.
        needs_teachers: Names of the teachers that it asks for, those of the table `[teachers]` or
            "ema" (see `training.ema`). The constructor may set it. Where the class names "initial",
            `mtl adapt` adds the run that it starts from to the table.
        teachers: Name -> teacher that it has asked for; set before the first step. Teachers are in
            no checkpoint.
        needs_losses: Whether `forward` reads `losses`.
        losses: Present task -> the loss of its head's prediction, before balancing, with its graph
            back to `features`. There during `forward`, and only for a loss that needs them.
    """

    views: int = 1
    needs_losses: bool = False
    losses: Mapping[str, Tensor] = MappingProxyType({})
    needs_teachers: tuple[str, ...] = ()
    teachers: Mapping[str, Teacher] = MappingProxyType({})

    @abc.abstractmethod
    def needs(self, batch: Batch, tasks: Sequence[str]) -> Iterable[str]:
        """Return the tasks whose heads must run on this batch, labelled there or not.

        Args:
            batch: with `views` views of every sample.
            tasks: names of the tasks that are learning; the answer is among them.
        """

    @abc.abstractmethod
    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute the terms of the loss.

        Args:
            batch: with `views` views of every sample.
            features: the backbone's, of all samples.
            predictions: task name -> raw output of its head, of all samples; at least for the
                tasks that `needs` names.

        Returns:
            Name of a term -> scalar; empty where the loss does not apply to the batch.
        """

    def after_step(self, context: StepContext) -> None:
        """Update the state after a step that was taken, on every process; here, do nothing.

        A skipped step does not call it. What it changes must be part of the state, as buffers or
        in `get_extra_state`, and alike on every process. Steps call it only where a class
        overrides it.

        Args:
            context: What is known of the step.
        """


@attrs.frozen(kw_only=True)
class TaskLosses:
    """The losses of one batch, every scalar a tensor with its own graph.

    A task is present if the batch has a valid label for it.

    Args:
        raw: present task -> the loss of its head's prediction.
        balanced: present task -> its loss, that of early predictions included, after the loss
            balancers.
        cross: name of a term between tasks, or of the backbone's -> its value.
        maps: present task -> its elementwise loss, those of early predictions included; empty
            unless a balancer needs maps.
        cut: the backbone's `Features.cut`.
        boundary: where heads were separated from the backbone; None if they were not.
        early: present task -> the weighted sum of the losses of its early predictions; only where
            the backbone makes some.
    """

    raw: dict[str, Tensor]
    balanced: dict[str, Tensor]
    cross: dict[str, Tensor] = attrs.field(factory=dict)
    maps: dict[str, Tensor] = attrs.field(factory=dict)
    cut: tuple[Tensor, ...] = ()
    boundary: Boundary | None = None
    early: dict[str, Tensor] = attrs.field(factory=dict)

    @property
    def total(self) -> dict[str, Tensor]:
        """Present task -> its loss before balancing: `raw`, plus `early` where there is some."""
        if not self.early:
            return self.raw
        return {
            task: loss + self.early[task] if task in self.early else loss
            for task, loss in self.raw.items()
        }


def reduce_loss(
    loss: Loss | ScalarLoss,
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    normalisation: Normalisation = "valid",
    labelled: Sequence[int] = (),
    beside: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Reduce a task's loss to a scalar.

    Args:
        loss: of the task.
        prediction: raw output of the head, (B, task.channels, ...).
        target: `(B, *target_shape)`; the task's safe value where it is not valid.
        valid: `(B, *valid_shape)` boolean, with at least one True.
        normalisation: "valid" divides the sum over all valid elements of the batch by the sum of
            their weights. "sample" does so for each sample, and divides the sum of the results by
            the batch size, so that a sample without labels counts as zero (the convention of
            MTPSL's code). "labelled" also divides each sample's result by the number of its tasks
            that have a label (that of MTPSL's paper, eq. 1).
        labelled: for "labelled", the number of labelled tasks of each sample, (B,).
        beside: elementwise losses of other predictions of the task, which are added; a `ScalarLoss`
            has none.

    Returns:
        The scalar, and the elementwise losses `(B, *valid_shape)`, None for a `ScalarLoss`.
    """
    if isinstance(loss, ScalarLoss):
        if normalisation == "valid":
            return loss(prediction, target, valid), None
        terms = [
            loss(prediction[i : i + 1], target[i : i + 1], valid[i : i + 1])
            / (labelled[i] if normalisation == "labelled" else 1)
            for i in range(len(valid))
            if bool(valid[i].any())
        ]
        return torch.stack(terms).sum() / len(valid), None
    values, kept, mass = _weighed(loss, prediction, target, valid)
    if beside is not None:
        values = values + beside
        kept = values * valid
    if normalisation == "valid":
        return kept.sum() / mass.sum(), values
    kept, mass = (part.reshape(len(part), -1).sum(1) for part in (kept, mass))
    # A sample without labels is 0 / 1 here, not 0 / 0.
    means = kept / mass.masked_fill(mass == 0, 1)
    if normalisation == "labelled":
        means = means / means.new_tensor([max(number, 1) for number in labelled])
    return means.mean(), values


def loss_sums(
    loss: Loss | ScalarLoss,
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    labelled: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Return what a split's loss is made of: the sum of the losses, and that of their weights.

    The quotient of both, each added up over batches, is the same however a split is cut into them.
    A `ScalarLoss` is taken of every sample by itself, and weighs as much as the sample's valid
    elements.

    Args:
        loss: of the task.
        prediction: raw output of the head, (B, task.channels, ...).
        target: `(B, *target_shape)`; the task's safe value where it is not valid.
        valid: `(B, *valid_shape)` boolean, with at least one True.
        labelled: whether each sample has a valid element.

    Returns:
        Two scalars in float64.
    """
    if isinstance(loss, Loss):
        _, kept, mass = _weighed(loss, prediction, target, valid)
        return kept.sum(dtype=torch.float64), mass.sum(dtype=torch.float64)
    samples = [slice(i, i + 1) for i, has_label in enumerate(labelled) if has_label]
    values = [loss(prediction[i], target[i], valid[i]).double() for i in samples]
    masses = [valid[i].sum(dtype=torch.float64) for i in samples]
    weighed = [value * mass for value, mass in zip(values, masses, strict=True)]
    return torch.stack(weighed).sum(), torch.stack(masses).sum()


def _weighed(
    loss: Loss, prediction: Tensor, target: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of every element, and of the valid ones loss and weight; 0 elsewhere."""
    result = loss.elementwise(prediction, target)
    values, weight = result if isinstance(result, tuple) else (result, None)
    return values, values * valid, valid.to(values.dtype) if weight is None else weight * valid
