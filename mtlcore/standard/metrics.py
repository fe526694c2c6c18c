"""The usual metrics of the usual tasks, pooled over all valid elements of a split.

Counts and sums stay on the device of the predictions until `compute`, so that an update never
waits for it; their memory does not grow with the split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from mtlcore.metrics import Metric
from mtlcore.standard.losses import unit_vectors
from mtlcore.tasks import Task


@final
class Pool:
    """A vector of counts (int64) or sums (float64) that follows the device it is fed from."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.values = torch.zeros(size, dtype=dtype)

    def add(self, values: Tensor) -> None:
        # Not in place: an update in inference mode must not forbid a later merge outside of it.
        self.values = self.values.to(values.device) + values

    def count(self, index: Tensor, valid: Tensor) -> None:
        """Add one to the entry of every valid element; `index` is in range everywhere."""
        none = torch.zeros_like(self.values, device=index.device)
        self.add(none.scatter_add(0, index.flatten(), valid.flatten().long()))

    def merge(self, other: Pool) -> None:
        self.values = self.values + other.values.to(self.values.device)

    def reset(self) -> None:
        self.values = torch.zeros_like(self.values)


@final
class SegmentationMetric(Metric):
    """Mean intersection over union and pixel accuracy, from one confusion matrix of the split.

    `miou` is the mean over classes of TP / (TP + FP + FN); classes that occur neither in the
    targets nor in the predictions are left out, and so are those that the task ignores: an element
    of another class that is predicted as one of these is wrong for its own class alone. Both are
    fractions; published tables print percent. Maps (B, C, H, W) and single labels (B, C) alike.
    """

    higher_is_better: Mapping[str, bool] = {"miou": True, "pixel_accuracy": True}

    def __init__(self, task: Task) -> None:
        self._classes, self._counted = task.channels, list(task.counted)
        self._confusion = Pool(task.channels**2, torch.int64)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch: logits (B, C, ...), classes (B, ...) int64, mask (B, ...)."""
        self._confusion.count(target * self._classes + prediction.argmax(1), valid)

    def compute(self) -> dict[str, float]:
        """Return `miou` and `pixel_accuracy`, 0 to 1."""
        # Rows are the targets, columns the predictions.
        confusion = self._confusion.values.cpu().double().reshape(self._classes, self._classes)
        hits = confusion.diagonal()
        union = (confusion.sum(0) + confusion.sum(1) - hits)[self._counted]
        overlap, occurs = hits[self._counted], union > 0
        # The mean of no class and the quotient 0 / 0 are NaN, as they should be.
        return {
            "miou": float((overlap[occurs] / union[occurs]).mean()),
            "pixel_accuracy": float(hits.sum() / confusion.sum()),
        }

    def merge(self, other: Metric) -> None:
        """Add the other's confusion matrix."""
        assert isinstance(other, SegmentationMetric)
        self._confusion.merge(other._confusion)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._confusion.reset()


@final
class DepthMetric(Metric):
    """Errors of depths over all valid pixels of the split.

    `abs_error` = mean |d^ - d| and `rmse` = the root of the mean of (d^ - d)^2, in the task's unit;
    `rel_error` = mean |d^ - d| / d; `delta1`, the part of the pixels with max(d^ / d, d / d^) <
    1.25, a fraction (Eigen et al. 2014), for which a prediction that is not positive is wrong. The
    MTAN family averages the means of batches instead, which depends on the batch size.
    """

    higher_is_better: Mapping[str, bool] = {
        "abs_error": False,
        "rel_error": False,
        "rmse": False,
        "delta1": True,
    }

    def __init__(self, task: Task) -> None:
        self._sums = Pool(5, torch.float64)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch: depths (B, 1, H, W), positive where valid, and mask (B, H, W)."""
        valid = valid.unsqueeze(1)
        error = (prediction - target).abs().double()
        near = (prediction < 1.25 * target) & (target < 1.25 * prediction)
        terms = (error, error / target, error.square(), near.double(), torch.ones_like(error))
        self._sums.add(torch.stack([torch.where(valid, term, 0).sum() for term in terms]))

    def compute(self) -> dict[str, float]:
        """Return `abs_error` and `rmse` in the task's unit, `rel_error` and `delta1` as ratios."""
        *sums, count = self._sums.values.tolist()
        if not count:
            return dict.fromkeys(self.higher_is_better, math.nan)
        absolute, relative, squared, near = (total / count for total in sums)
        return {
            "abs_error": absolute,
            "rel_error": relative,
            "rmse": math.sqrt(squared),
            "delta1": near,
        }

    def merge(self, other: Metric) -> None:
        """Add the other's sums."""
        assert isinstance(other, DepthMetric)
        self._sums.merge(other._sums)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._sums.reset()


@final
class NormalsMetric(Metric):
    """Angles between predicted and true normals over all valid pixels of the split.

    `mean_angle` and `median_angle` in degrees; `within_11_25`, `within_22_5` and `within_30` are
    the pixels with a strictly smaller angle, in percent (0 to 100, as published tables have them).
    The median comes from a histogram of the angles rounded to 0.01 degrees and is at most 0.005
    degrees off. A prediction of length zero is at 90 degrees to everything; one that is NaN makes
    the mean NaN and counts as 180 degrees in the other values.
    """

    higher_is_better: Mapping[str, bool] = {
        "mean_angle": False,
        "median_angle": False,
        "within_11_25": True,
        "within_22_5": True,
        "within_30": True,
    }
    _LIMITS = (11.25, 22.5, 30.0)
    _BINS_PER_DEGREE = 100

    def __init__(self, task: Task) -> None:
        self._histogram = Pool(180 * self._BINS_PER_DEGREE + 1, torch.int64)
        # The sum of the angles and the pixels within each limit.
        self._sums = Pool(1 + len(self._LIMITS), torch.float64)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch.

        Raw vectors (B, 3, H, W), unit vectors (B, 3, H, W), mask (B, H, W).
        """
        angle = _angle(prediction.to(target.dtype), target)
        rounded = (angle.nan_to_num(nan=180.0) * self._BINS_PER_DEGREE).round().long()
        self._histogram.count(rounded, valid)
        within = [((angle < limit) & valid).sum().double() for limit in self._LIMITS]
        self._sums.add(torch.stack([torch.where(valid, angle, 0).double().sum(), *within]))

    def compute(self) -> dict[str, float]:
        """Return the five metrics, in the order of the class's description."""
        histogram = self._histogram.values.cpu()
        count = int(histogram.sum())
        if not count:
            return dict.fromkeys(self.higher_is_better, math.nan)
        total, *within = self._sums.values.tolist()
        # The two middle ranks, counted from 1; the same one where the count is odd.
        middle = torch.tensor([(count + 1) // 2, count // 2 + 1])
        bins = torch.searchsorted(histogram.cumsum(0), middle)
        median = float(bins.double().mean()) / self._BINS_PER_DEGREE
        values = [total / count, median, *(100 * hits / count for hits in within)]
        return dict(zip(self.higher_is_better, values, strict=True))

    def merge(self, other: Metric) -> None:
        """Add the other's histogram and sums."""
        assert isinstance(other, NormalsMetric)
        self._histogram.merge(other._histogram)
        self._sums.merge(other._sums)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._histogram.reset()
        self._sums.reset()


def _angle(prediction: Tensor, target: Tensor) -> Tensor:
    """Angles in degrees between vectors along dim 1.

    `2 atan2(|a - b|, |a + b|)` of unit vectors (Kahan) rather than the arc cosine of their
    product: near 0 the latter loses half the digits, 0.02 degrees in float32.
    """
    a, b = unit_vectors(prediction), unit_vectors(target)
    apart, along = (v.square().sum(1).sqrt() for v in (a - b, a + b))
    return torch.rad2deg(2 * torch.atan2(apart, along)).clamp(max=180.0)


@final
class EdgesMetric(Metric):
    """`f1`: the largest pixel F-measure of the split over the thresholds 0.01, 0.02, ..., 0.99.

    A pixel is predicted where sigmoid(logit) >= threshold and positive where target >= 0.5; one
    threshold for the whole split. Pixels must coincide exactly: without thinning and without the
    usual tolerance in place the numbers are far below a published odsF. NaN without positives; a
    prediction that is NaN counts as probability 0.
    """

    higher_is_better: Mapping[str, bool] = {"f1": True}
    _THRESHOLDS = 99

    def __init__(self, task: Task) -> None:
        # Twice (negatives, positives) the pixels by the number of thresholds they reach.
        self._reached = Pool(2 * (self._THRESHOLDS + 1), torch.int64)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch.

        Logits (B, C, H, W), targets of the same shape in [0, 1], mask (B, H, W).
        """
        steps = torch.arange(1, self._THRESHOLDS + 1, device=prediction.device)
        probability = prediction.float().sigmoid().nan_to_num(nan=0.0)
        reached = torch.bucketize(probability, steps / (self._THRESHOLDS + 1), right=True)
        positive = (target >= 0.5).long()
        index = positive * (self._THRESHOLDS + 1) + reached
        self._reached.count(index, valid.unsqueeze(1).expand_as(index))

    def compute(self) -> dict[str, float]:
        """Return `f1`, 0 to 1."""
        reached = self._reached.values.cpu().double().reshape(2, -1)
        positives = float(reached[1].sum())
        if not positives:
            return {"f1": math.nan}
        # From the last threshold backwards; entry 0 counts those that reach none.
        predicted = reached.sum(0).flip(0).cumsum(0)[:-1]
        hits = reached[1].flip(0).cumsum(0)[:-1]
        return {"f1": float((2 * hits / (predicted + positives)).max())}

    def merge(self, other: Metric) -> None:
        """Add the other's counts."""
        assert isinstance(other, EdgesMetric)
        self._reached.merge(other._reached)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._reached.reset()
