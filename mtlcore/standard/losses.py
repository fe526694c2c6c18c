"""The per-element losses of the usual tasks; how they become a scalar is `reduce_loss`."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlcore.errors import UsageError
from mtlcore.losses import Loss
from mtlcore.tasks import Task

# Predicted normals shorter than this are divided by it instead of by their length. The gradient
# of a cosine grows like 1 / length: unbounded near zero, it would ruin a step.
SHORTEST_NORMAL = 1e-4


@final
class CrossEntropy(Loss):
    """`-log softmax(z)[y]`, for segmentation and classification.

    With `class_weights` w an element counts w[y] times: the loss is
    `sum w[y] (-log softmax(z)[y]) / sum w[y]` over the valid elements.

    Args:
        task: with one channel per class.
        class_weights: one positive number per class; by default all classes count alike.

    Raises:
        UsageError: not one weight per class, or one that is not positive.
    """

    class_weights: Tensor | None

    def __init__(self, task: Task, *, class_weights: tuple[float, ...] | None = None) -> None:
        super().__init__()
        weights = None if class_weights is None else _checked_weights(task, class_weights)
        # A setting, not a state: it comes from the configuration and not from a checkpoint.
        self.register_buffer("class_weights", weights, persistent=False)

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, C, ...) and classes (B, ...) int64 -> (B, ...), with weights if there are."""
        values = F.cross_entropy(prediction, target, reduction="none")
        if self.class_weights is None:
            return values
        weight = self.class_weights.to(values.dtype)[target]
        return values * weight, weight


def _checked_weights(task: Task, class_weights: tuple[float, ...]) -> Tensor:
    if len(class_weights) != task.channels:
        raise UsageError(
            f"class_weights has {len(class_weights)} numbers; task {task.name!r} has "
            f"{task.channels} classes"
        )
    weights = torch.tensor(class_weights, dtype=torch.float32)
    # With a weight of 0 a batch of that class alone would be 0 / 0.
    if not bool((torch.isfinite(weights) & (weights > 0)).all()):
        raise UsageError(f"class_weights of task {task.name!r} must be positive and finite")
    return weights


@final
class L1(Loss):
    """`|d^ - d|`, for depth and regression, in the task's unit (Liu et al. 2019, MTAN, eq. 3).

    Over the channels of a map it is the mean; the values of a vector stay apart.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._is_map = task.layout == "map"

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Maps (B, C, H, W) -> (B, H, W); vectors (B, C) -> (B, C)."""
        values = (prediction - target).abs()
        return values.mean(1) if self._is_map else values


@final
class Cosine(Loss):
    """`1 - n^ . n` with n^ the prediction at unit length, for normals; from 0 to 2.

    Liu et al. 2019 (MTAN), eq. 4, plus the constant 1 as in their code. A prediction shorter than
    `SHORTEST_NORMAL` is divided by that instead of by its length, so that the gradient is bounded.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Raw vectors (B, 3, H, W) and unit vectors of the same shape -> (B, H, W)."""
        # Squares of half precision numbers overflow at 256.
        prediction = prediction.to(torch.promote_types(prediction.dtype, target.dtype))
        length: Tensor = torch.linalg.vector_norm(prediction, dim=1)
        return 1 - (prediction * target).sum(1) / length.clamp_min(SHORTEST_NORMAL)


@final
class BinaryCrossEntropy(Loss):
    """Cross-entropy of yes-or-no targets with rare positives, for edges and multilabel.

    With z the logit, t in [0, 1] the target and w = `positive_weight`:

        loss   = w t softplus(-z) + (1 - w) (1 - t) softplus(z)
        weight = w t + (1 - w) (1 - t)

    so that the scalar is a mean weighted by `weight`. Vandenhende et al. 2021 use w = 0.95 and
    divide the same sum by the number of pixels instead, which gives a value smaller by the mean
    weight: 0.05 + 0.9 p at w = 0.95 and a share p of positives.

    Args:
        task: a map or a vector; over the channels of a map it is the mean.
        positive_weight: w, between 0 and 1; 0.5 weighs both alike.

    Raises:
        UsageError: `positive_weight` is not between 0 and 1.
    """

    def __init__(self, task: Task, *, positive_weight: float = 0.95) -> None:
        super().__init__()
        if not 0 < positive_weight < 1:
            raise UsageError(
                f"positive_weight of task {task.name!r} must lie between 0 and 1, "
                f"not {positive_weight}"
            )
        self._positive_weight = positive_weight
        self._is_map = task.layout == "map"

    def elementwise(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and targets (B, C, H, W) -> twice (B, H, W); (B, C) -> twice (B, C)."""
        positive = self._positive_weight * target
        negative = (1 - self._positive_weight) * (1 - target)
        values = positive * F.softplus(-prediction) + negative * F.softplus(prediction)
        weight = positive + negative
        return (values.mean(1), weight.mean(1)) if self._is_map else (values, weight)
