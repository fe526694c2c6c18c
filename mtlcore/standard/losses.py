"""The losses of the usual tasks; how those per element become a scalar is `reduce_loss`."""

from __future__ import annotations

import math
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlcore.errors import UsageError
from mtlcore.losses import Loss, ScalarLoss
from mtlcore.ranges import NonNegative, Positive, ProperFraction
from mtlcore.tasks import Task

# Predicted normals shorter than this are divided by it instead of by their length. The gradient
# of a cosine grows like 1 / length: unbounded near zero, it would ruin a step.
SHORTEST_NORMAL = 1e-4


def lengths(vectors: Tensor, shortest: float) -> Tensor:
    """Return the Euclidean lengths of vectors along dim 1, none below `shortest`.

    The gradient of a length below it is zero. On a CPU this takes a fiftieth of the time of
    `torch.linalg.vector_norm`, which visits channels of a map one by one.

    Args:
        vectors: (N, C, ...).
        shortest: smallest length to return, positive; its square must be one of the dtype.

    Returns:
        (N, ...).
    """
    return vectors.square().sum(1).clamp_min(shortest**2).sqrt()


def unit_vectors(vectors: Tensor, shortest: float = 1e-12) -> Tensor:
    """Return vectors along dim 1 divided by their length, or by `shortest` if they are shorter."""
    return vectors / lengths(vectors, shortest).unsqueeze(1)


@final
class CrossEntropy(Loss):
    """`-log softmax(z)[y]`, for segmentation, classification and tagging.

    With `class_weights` w an element counts w[y] times: the loss is
    `sum w[y] (-log softmax(z)[y]) / sum w[y]` over the valid elements.

    Args:
        task: with one channel per class.
        class_weights: one positive number per class; by default all classes count alike.

    Raises:
        UsageError: not one weight per class, or one that is not positive.
    """

    class_weights: Tensor | None

    def __init__(self, task: Task, *, class_weights: tuple[Positive, ...] | None = None) -> None:
        super().__init__()
        weights = None if class_weights is None else _checked_weights(task, class_weights)
        # A setting, not a state: it comes from the configuration and not from a checkpoint.
        self.register_buffer("class_weights", weights, persistent=False)

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the loss.

        Logits (B, C, ...) and classes (B, ...) int64 -> (B, ...), with weights if there are.
        """
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
    # With a weight of 0 a batch of that class alone would be 0 / 0.
    if not all(0 < weight < math.inf for weight in class_weights):
        raise UsageError(f"class_weights of task {task.name!r} must be positive and finite")
    return torch.tensor(class_weights, dtype=torch.float32)


@final
class Focal(Loss):
    """`-(1 - p)^gamma log p` with p = softmax(z)[y], for segmentation, classification and tagging.

    Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4, over classes by softmax
    where the paper has a sigmoid per class. It is the mean over elements, not divided by the number
    of objects as there. With gamma = 0 it is the cross-entropy.

    Args:
        gamma: how strongly elements that are already right are discounted.

    Raises:
        UsageError: `gamma` is negative.
    """

    def __init__(self, task: Task, *, gamma: NonNegative = 2.0) -> None:
        super().__init__()
        if not 0 <= gamma < math.inf:
            raise UsageError(f"gamma of task {task.name!r} must not be negative, it is {gamma}")
        self._gamma = gamma

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss: logits (B, C, ...) and classes (B, ...) int64 -> (B, ...)."""
        surprise = F.cross_entropy(prediction, target, reduction="none")
        # At 0 the power has an infinite slope for gamma below 1.
        doubt = -torch.expm1(-surprise)
        return doubt.clamp_min(torch.finfo(doubt.dtype).eps) ** self._gamma * surprise


@final
class L1(Loss):
    """`|d^ - d|`, for depth and regression, in the task's unit (Liu et al. 2019, MTAN, eq. 3).

    A standardised task (`Task.standardise`) is judged in standard deviations, as by every loss.
    Over the channels of a map it is the mean; the values of a vector stay apart.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._is_dense = task.is_dense

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss: maps (B, C, H, W) -> (B, H, W); vectors (B, C) -> (B, C)."""
        values = (prediction - target).abs()
        return values.mean(1) if self._is_dense else values


@final
class MSE(Loss):
    """`(d^ - d)^2`, for depth and regression, in the square of the task's unit.

    Over the channels of a map it is the mean; the values of a vector stay apart.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._is_dense = task.is_dense

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss: maps (B, C, H, W) -> (B, H, W); vectors (B, C) -> (B, C)."""
        values = F.mse_loss(prediction, target, reduction="none")
        return values.mean(1) if self._is_dense else values


@final
class Huber(Loss):
    """`e^2 / 2` where `|e| <= delta`, else `delta (|e| - delta / 2)`, for edges, depth, regression.

    Huber 1964. The error e is that of the value itself, except for edges: there the logit goes
    through a sigmoid first (Upadhyay et al., MTML, with delta = 0.5). Over the channels of a map it
    is the mean; the values of a vector stay apart.

    Args:
        delta: where the square turns into a line, in the unit of the target.

    Raises:
        UsageError: `delta` is not positive.
    """

    def __init__(self, task: Task, *, delta: Positive = 0.5) -> None:
        super().__init__()
        if not 0 < delta < math.inf:
            raise UsageError(f"delta of task {task.name!r} must be positive, not {delta}")
        self._delta = delta
        self._is_dense = task.is_dense
        self._is_logit = task.kind == "edges"

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss: maps (B, C, H, W) -> (B, H, W); vectors (B, C) -> (B, C)."""
        value = prediction.sigmoid() if self._is_logit else prediction
        values = F.huber_loss(value, target, reduction="none", delta=self._delta)
        return values.mean(1) if self._is_dense else values


@final
class Cosine(Loss):
    """`1 - n^ . n` with n^ the prediction at unit length, for normals; from 0 to 2.

    Liu et al. 2019 (MTAN), eq. 4, plus the constant 1 as in their code. A prediction shorter than
    `SHORTEST_NORMAL` is divided by that instead of by its length, so that the gradient is bounded.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Raw vectors (B, 3, H, W) and unit vectors of the same shape -> (B, H, W).
        """
        prediction, length = _with_length(prediction, target)
        return 1 - (prediction * target).sum(1) / length


@final
class NormalsL1(Loss):
    """`mean over x, y, z of |n^ - n|` with n^ the prediction at unit length, for normals.

    Vandenhende et al. 2021 (their weight of 10 is for this mean); others, such as InvPT, take the
    sum over x, y and z, three times as much. Short predictions are treated as in `Cosine`.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Raw vectors (B, 3, H, W) and unit vectors of the same shape -> (B, H, W).
        """
        prediction, length = _with_length(prediction, target)
        return (prediction / length.unsqueeze(1) - target).abs().mean(1)


def _with_length(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors (B, 3, H, W) and what divides them (B, H, W)."""
    # Squares of half precision numbers overflow at 256.
    prediction = prediction.to(torch.promote_types(prediction.dtype, target.dtype))
    return prediction, lengths(prediction, SHORTEST_NORMAL)


@final
class BinaryCrossEntropy(Loss):
    """Cross-entropy of yes-or-no targets with rare positives, for edges and multilabel.

    With z the logit, t in [0, 1] the target and w = `positive_weight`:

        loss   = w t softplus(-z) + (1 - w) (1 - t) softplus(z)
        weight = w t + (1 - w) (1 - t)

    so that the scalar is a mean weighted by `weight`. Vandenhende et al. 2021 use w = 0.95 and
    divide the same sum by the number of pixels instead (`divide_by = "number"`), which gives a
    value smaller by the mean weight: 0.05 + 0.9 p at w = 0.95 and a share p of positives.

    Args:
        task: a map or a vector; over the channels of a map it is the mean.
        positive_weight: w, between 0 and 1; 0.5 weighs both alike.
        divide_by: divide the sum by that of the weights, or by the number of valid elements.

    Raises:
        UsageError: `positive_weight` is not between 0 and 1.
    """

    def __init__(
        self,
        task: Task,
        *,
        positive_weight: ProperFraction = 0.95,
        divide_by: Literal["weight", "number"] = "weight",
    ) -> None:
        super().__init__()
        if not 0 < positive_weight < 1:
            raise UsageError(
                f"positive_weight of task {task.name!r} must lie between 0 and 1, "
                f"not {positive_weight}"
            )
        self._positive_weight, self._by_weight = positive_weight, divide_by == "weight"
        self._is_dense = task.is_dense

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the loss, with the weights if it is divided by them.

        Logits and targets (B, C, H, W) -> (B, H, W) each; (B, C) -> (B, C) each.
        """
        positive = self._positive_weight * target
        negative = (1 - self._positive_weight) * (1 - target)
        values = positive * F.softplus(-prediction) + negative * F.softplus(prediction)
        weight = positive + negative
        if self._is_dense:
            values, weight = values.mean(1), weight.mean(1)
        return (values, weight) if self._by_weight else values


@final
class MultiLabel(Loss):
    """Plain binary cross-entropy per label, for multilabel: `softplus(z) - t z` with z the logit.

    All labels and both answers count alike; `BinaryCrossEntropy` weighs rare positives up.

    Args:
        task: a vector, whose values stay apart; over the channels of a map it is the mean.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._is_dense = task.is_dense

    def elementwise(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Logits and targets in [0, 1]: (B, C) -> (B, C); maps (B, C, H, W) -> (B, H, W).
        """
        values = F.binary_cross_entropy_with_logits(prediction, target, reduction="none")
        return values.mean(1) if self._is_dense else values


@final
class HuDepth(ScalarLoss):
    """Depth, its gradients and the normals they imply (Hu et al., WACV 2019, arXiv 1803.08673).

    With the error e = d^ - d, Sobel's 3x3 differences dx and dy, and n = (-dx d, -dy d, 1):

        mean ln(|e| + a) + mean (ln(|dx e| + a) + ln(|dy e| + a)) + mean (1 - cos(n^, n))

    all with weight 1. As in the authors' code the gradient term takes differences of e rather than
    of |e| (which the paper writes), and differences are Sobel sums, 8 times the slope per pixel.

    Masking: the first mean is over valid pixels, the others are over those 3x3 windows that lie in
    the image and are valid throughout; where there is no such window they are 0. (The authors pad
    with zeros at the border and expect labels everywhere.) Predictions and labels are depths in the
    task's unit; MTML instead sends the prediction through a sigmoid and scales labels to [0, 1].

    The loss is negative for small errors, down to 3 ln a = -2.08: no loss for balancers that take
    logarithms or quotients of losses, nor for `exp(-s) L + s`, which then has no minimum in s.
    `from_zero` subtracts that constant: what the network learns is the same, and a prediction
    without error has the loss 0.

    Args:
        a: what is added before the logarithm, in the unit of the depth; the smaller, the more small
            errors count.
        from_zero: subtract 3 ln a, so that the loss is never negative.

    Raises:
        UsageError: `a` is not positive.
    """

    def __init__(self, task: Task, *, a: Positive = 0.5, from_zero: bool = False) -> None:
        super().__init__()
        if not 0 < a < math.inf:
            raise UsageError(f"a of task {task.name!r} must be positive, not {a}")
        self._a, self._floor = a, math.log(a) if from_zero else 0.0

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Compute the loss: depths (B, 1, H, W) twice and a mask (B, H, W) -> a scalar."""
        mask = valid.unsqueeze(1).expand_as(target)
        prediction = prediction.to(target.dtype)  # half precision has too few digits for slopes
        error = prediction - target
        dx, dy = _sobel(prediction)
        true_dx, true_dy = _sobel(target)
        slopes = self._log(dx - true_dx) + self._log(dy - true_dy)
        squared = (dx.square() + dy.square() + 1) * (true_dx.square() + true_dy.square() + 1)
        turned = 1 - (dx * true_dx + dy * true_dy + 1) / squared.sqrt()
        return _mean(self._log(error), mask) + _mean(slopes + turned, _whole_windows(mask))

    def _log(self, error: Tensor) -> Tensor:
        return (error.abs() + self._a).log() - self._floor


def _sobel(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return differences summed over 3x3 windows: (..., H, W) -> twice (..., H - 2, W - 2)."""
    across = maps[..., 2:] - maps[..., :-2]
    down = maps[..., 2:, :] - maps[..., :-2, :]
    return (
        across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :],
        down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:],
    )


def _whole_windows(mask: Tensor) -> Tensor:
    """Which 3x3 windows are true throughout: (..., H, W) -> (..., H - 2, W - 2)."""
    rows = mask[..., :-2] & mask[..., 1:-1] & mask[..., 2:]
    return rows[..., :-2, :] & rows[..., 1:-1, :] & rows[..., 2:, :]


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean where the mask is true; 0 where it is true nowhere."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp_min(1)
