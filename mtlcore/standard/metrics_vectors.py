"""The usual metrics of tasks with a label or a vector per sample, pooled over the split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, final

import torch
from torch import Tensor

from mtlcore.metrics import Metric
from mtlcore.ranges import Range
from mtlcore.standard.metrics import Pool
from mtlcore.tasks import Task


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Compute the exact area under the ROC curve.

    Of all pairs of a positive and a negative the part in which the positive has the higher score,
    ties counted half (Mann and Whitney's U by ranks); counted in integers, n log n steps.

    Args:
        scores: (N,).
        positive: (N,) boolean.

    Returns:
        0 to 1; NaN without a positive, without a negative, or where a score is NaN.
    """
    positives = int(positive.sum())
    pairs = positives * (len(positive) - positives)
    if not pairs or bool(scores.isnan().any()):
        return math.nan
    high, low = scores[positive], scores[~positive].sort().values
    below, not_above = (torch.searchsorted(low, high, right=right) for right in (False, True))
    return int((below + not_above).sum()) / (2 * pairs)


@final
class _Scores:
    """Every score with its label, for metrics that need their order; on the device they came from.

    Six bytes per element in single precision, valid or not.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, scores: Tensor, positive: Tensor, valid: Tensor) -> None:
        # A copy of the scores: the caller may reuse its memory.
        self._parts.append((torch.where(valid, scores, 0), positive, valid.clone()))

    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and masks, on the CPU."""
        if not self._parts:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0).bool()
        scores, positive, valid = (
            torch.cat([x.cpu() for x in column]) for column in zip(*self._parts, strict=True)
        )
        return scores, positive, valid

    def merge(self, other: _Scores) -> None:
        self._parts = [*self._parts, *other._parts]

    def reset(self) -> None:
        self._parts = []


@final
class ClassificationMetric(Metric):
    """Accuracy and F-measure of single labels; with two classes the area under the ROC curve too.

    `accuracy` is the part of the samples whose largest logit is that of their class. `macro_f1` is
    the mean over classes of 2 TP / (2 TP + FP + FN); classes that occur neither in the labels nor
    in the predictions are left out, and so are those that the task ignores. `auc` is exact, ties
    counted half, of class 1 against class 0 by the difference of their logits; it keeps six bytes
    per sample. All are fractions.
    """

    higher_is_better: Mapping[str, bool]

    def __init__(self, task: Task) -> None:
        self._classes, self._counted = task.channels, list(task.counted)
        self._confusion = Pool(task.channels**2, torch.int64)
        self._scores = _Scores() if task.channels == 2 else None
        names = ("accuracy", "macro_f1", *(("auc",) if self._scores else ()))
        self.higher_is_better = dict.fromkeys(names, True)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch: logits (B, C), classes (B,) int64, mask (B,)."""
        self._confusion.count(target * self._classes + prediction.argmax(1), valid)
        if self._scores is not None:
            self._scores.add(prediction[:, 1] - prediction[:, 0], target == 1, valid)

    def compute(self) -> dict[str, float]:
        """Return `accuracy`, `macro_f1` and, for two classes, `auc`."""
        # Rows are the labels, columns the predictions.
        confusion = self._confusion.values.cpu().double().reshape(self._classes, self._classes)
        hits, both = confusion.diagonal(), (confusion.sum(0) + confusion.sum(1))[self._counted]
        right, occurs = hits[self._counted], both > 0
        # The mean of no class and the quotient 0 / 0 are NaN, as they should be.
        values = {
            "accuracy": float(hits.sum() / confusion.sum()),
            "macro_f1": float((2 * right[occurs] / both[occurs]).mean()),
        }
        if self._scores is not None:
            scores, positive, valid = self._scores.joined()
            values["auc"] = area_under_curve(scores[valid], positive[valid])
        return values

    def merge(self, other: Metric) -> None:
        """Add the other's confusion matrix and scores."""
        assert isinstance(other, ClassificationMetric)
        self._confusion.merge(other._confusion)
        if self._scores is not None and other._scores is not None:
            self._scores.merge(other._scores)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._confusion.reset()
        if self._scores is not None:
            self._scores.reset()


@final
class TopAccuracy(Metric):
    """`top5_accuracy`: the part of the samples whose class has one of the five largest logits.

    Of classes with equal logits the sample's own is the last, so that a network that says the same
    of all classes is not right. So is a logit that is NaN.

    Args:
        k: how many classes count; the value is called `top<k>_accuracy`.
    """

    higher_is_better: Mapping[str, bool]

    def __init__(self, task: Task, *, k: Annotated[int, Range(ge=1)] = 5) -> None:
        self._k = k
        self._name = f"top{k}_accuracy"
        self.higher_is_better = {self._name: True}
        # Samples that are right, and all of them.
        self._counts = Pool(2, torch.int64)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch: logits (B, C), classes (B,) int64, mask (B,)."""
        own = prediction.gather(1, target.unsqueeze(1))
        rank = (~(prediction < own)).sum(1)  # from 1: the own logit is not below itself
        self._counts.add(torch.stack([((rank <= self._k) & valid).sum(), valid.sum()]))

    def compute(self) -> dict[str, float]:
        """Return the accuracy, 0 to 1."""
        right, all_of_them = self._counts.values.tolist()
        return {self._name: right / all_of_them if all_of_them else math.nan}

    def merge(self, other: Metric) -> None:
        """Add the other's counts."""
        assert isinstance(other, TopAccuracy)
        self._counts.merge(other._counts)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._counts.reset()


@final
class MultiLabelMetric(Metric):
    """Ranking and decisions of yes-or-no labels.

    `auc`: the area under the ROC curve of all labels of all samples together; `macro_auc`: the mean
    over labels of their own areas, those without a positive or a negative left out. Both are exact,
    ties counted half, and taken of the logits (a sigmoid in single precision makes ties). `f1` =
    2 TP / (2 TP + FP + FN) over everything, a logit above 0 being a yes; without a single yes in
    labels and predictions it is NaN. A label is positive from 0.5. Keeps six bytes per label of
    every sample.
    """

    higher_is_better: Mapping[str, bool] = {"auc": True, "macro_auc": True, "f1": True}

    def __init__(self, task: Task) -> None:
        self._labels = task.channels
        self._scores = _Scores()

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch: logits (B, C), targets (B, C) in [0, 1], mask (B, C)."""
        self._scores.add(prediction, target >= 0.5, valid)

    def compute(self) -> dict[str, float]:
        """Return `auc`, `macro_auc` and `f1`, 0 to 1."""
        scores, positive, valid = (x.reshape(-1, self._labels) for x in self._scores.joined())
        columns = zip(scores.T, positive.T, valid.T, strict=True)
        areas = [area_under_curve(s[v], p[v]) for s, p, v in columns]
        known = [area for area in areas if not math.isnan(area)]
        scores, positive = scores[valid], positive[valid]
        said = scores > 0
        both = int(said.sum()) + int(positive.sum())
        return {
            "auc": area_under_curve(scores, positive),
            "macro_auc": sum(known) / len(known) if known else math.nan,
            "f1": 2 * int((said & positive).sum()) / both if both else math.nan,
        }

    def merge(self, other: Metric) -> None:
        """Add the other's scores."""
        assert isinstance(other, MultiLabelMetric)
        self._scores.merge(other._scores)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._scores.reset()


@final
class MultiLabelF1(Metric):
    """F-measures of yes-or-no labels, a logit above 0 being a yes.

    `micro_f1` = 2 TP / (2 TP + FP + FN) over all labels of all samples together, `macro_f1` the
    mean of that of each label; labels without a yes, in truth and predictions, are left out. A
    label is positive from 0.5. Both are fractions.
    """

    higher_is_better: Mapping[str, bool] = {"micro_f1": True, "macro_f1": True}

    def __init__(self, task: Task) -> None:
        self._labels = task.channels
        # Of each label, what is right, and twice that with what is missed and what is too much.
        self._counts = Pool(2 * task.channels, torch.int64)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch: logits (B, C), targets (B, C) in [0, 1], mask (B, C)."""
        said, true = (prediction > 0) & valid, (target >= 0.5) & valid
        self._counts.add(torch.cat([(said & true).sum(0), said.sum(0) + true.sum(0)]))

    def compute(self) -> dict[str, float]:
        """Return `micro_f1` and `macro_f1`; NaN where there is no yes at all."""
        right, both = self._counts.values.cpu().double().view(2, self._labels)
        occurs = both > 0
        return {
            "micro_f1": float(2 * right.sum() / both.sum()),
            "macro_f1": float((2 * right[occurs] / both[occurs]).mean()),
        }

    def merge(self, other: Metric) -> None:
        """Add the other's counts."""
        assert isinstance(other, MultiLabelF1)
        self._counts.merge(other._counts)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._counts.reset()


@final
class RegressionMetric(Metric):
    """Errors of values per sample: `mae`, `rmse` and `r2`.

    `mae` and `rmse` are over all valid values together, in their unit. `r2` is the mean over the
    task's values of 1 - sum (y^ - y)^2 / sum (y - mean y)^2; those whose labels are all the same
    are left out, and where there is no other it is NaN. Maps are taken too, each channel a value.
    """

    higher_is_better: Mapping[str, bool] = {"mae": False, "rmse": False, "r2": True}

    def __init__(self, task: Task) -> None:
        self._values = task.channels
        self.reset()

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch.

        Values (B, C, ...) twice; mask of the same shape, or without the channels.
        """
        mask = valid if valid.dim() == target.dim() else valid.unsqueeze(1).expand_as(target)
        mask, guess, truth = (
            x.movedim(1, -1).reshape(-1, self._values) for x in (mask, prediction, target)
        )
        truth = torch.where(mask, truth, 0).double()
        error = torch.where(mask, guess - truth, 0).double()
        count = mask.sum(0).double()
        mean = truth.sum(0) / count.clamp_min(1)
        spread = torch.where(mask, truth - mean, 0).square().sum(0)
        self._join(torch.stack([count, error.abs().sum(0), error.square().sum(0), mean, spread]))

    def compute(self) -> dict[str, float]:
        """Return `mae`, `rmse` and `r2` in this order."""
        count, absolute, squared, _, spread = self._moments.cpu()
        varied = spread > 0
        total = count.sum()
        # The mean of nothing and the quotient 0 / 0 are NaN, as they should be.
        return {
            "mae": float(absolute.sum() / total),
            "rmse": float((squared.sum() / total).sqrt()),
            "r2": float((1 - squared[varied] / spread[varied]).mean()),
        }

    def merge(self, other: Metric) -> None:
        """Add the other's sums."""
        assert isinstance(other, RegressionMetric)
        self._join(other._moments)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        # Per value: number, sums of |error| and error^2, mean of the labels, and the sum of their
        # squared distances from it. (A sum of squared labels would lose the spread of values far
        # from 0.)
        self._moments = torch.zeros(5, self._values, dtype=torch.float64)

    def _join(self, new: Tensor) -> None:
        old = self._moments.to(new.device)
        count = old[0] + new[0]
        share = new[0] / count.clamp_min(1)
        gap = new[3] - old[3]
        mean = old[3] + gap * share
        spread = old[4] + new[4] + gap.square() * old[0] * share
        self._moments = torch.stack([count, old[1] + new[1], old[2] + new[2], mean, spread])
