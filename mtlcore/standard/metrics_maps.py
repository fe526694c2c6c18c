"""Metrics of maps that some papers report beside the usual ones, pooled over the split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import Tensor

from mtlcore.metrics import Metric
from mtlcore.standard.losses import SHORTEST_NORMAL, lengths
from mtlcore.standard.metrics import Pool
from mtlcore.tasks import Task


@final
class _Mean:
    """A mean over all valid elements of the split."""

    def __init__(self) -> None:
        self._sums = Pool(2, torch.float64)

    def add(self, values: Tensor, valid: Tensor) -> None:
        """Add values of the mask's shape."""
        total = torch.where(valid, values, 0).double().sum()
        self._sums.add(torch.stack([total, valid.sum().double()]))

    def value(self) -> float:
        total, count = self._sums.values.tolist()
        return total / count if count else math.nan

    def merge(self, other: _Mean) -> None:
        self._sums.merge(other._sums)

    def reset(self) -> None:
        self._sums.reset()


@final
class ProbabilityError(Metric):
    """`mae`: the mean of `|sigmoid(z) - t|` over all valid pixels, for edges and saliency.

    What MTML reports of edges (Upadhyay et al. 2022, tables I to III), whose code leaves out the
    pixels with t = 1; here they count. A task's channels count alike.
    """

    higher_is_better: Mapping[str, bool] = {"mae": False}

    def __init__(self, task: Task) -> None:
        self._mean = _Mean()

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch.

        Logits (B, C, H, W), targets of the same shape in [0, 1], mask (B, H, W).
        """
        self._mean.add((prediction.float().sigmoid() - target).abs().mean(1), valid)

    def compute(self) -> dict[str, float]:
        """Return `mae`, 0 to 1."""
        return {"mae": self._mean.value()}

    def merge(self, other: Metric) -> None:
        """Add the other's sums."""
        assert isinstance(other, ProbabilityError)
        self._mean.merge(other._mean)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._mean.reset()


@final
class NormalsCosine(Metric):
    """`cosine`: the mean cosine of the angle between predicted and true normals, -1 to 1.

    What MTML reports of normals on Taskonomy (Upadhyay et al. 2022, table III). Predictions shorter
    than `SHORTEST_NORMAL` are divided by that instead of by their length.
    """

    higher_is_better: Mapping[str, bool] = {"cosine": True}

    def __init__(self, task: Task) -> None:
        self._mean = _Mean()

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch.

        Raw vectors (B, 3, H, W), unit vectors (B, 3, H, W), mask (B, H, W).
        """
        prediction = prediction.to(target.dtype)
        cosine = (prediction * target).sum(1) / lengths(prediction, SHORTEST_NORMAL)
        self._mean.add(cosine, valid)

    def compute(self) -> dict[str, float]:
        """Return `cosine`."""
        return {"cosine": self._mean.value()}

    def merge(self, other: Metric) -> None:
        """Add the other's sums."""
        assert isinstance(other, NormalsCosine)
        self._mean.merge(other._mean)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._mean.reset()


@final
class SaliencyIoU(Metric):
    """`miou`: intersection over union of what is salient, a mean over images at one threshold.

    As Vandenhende et al. 2021 have it ("Sal. mIoU"): a pixel is predicted where sigmoid(logit) is
    above a threshold and true where the target is at least 0.5; the threshold is the one of 0.20,
    0.25, ..., 0.90 whose mean over the images of the split is the largest. An image that is empty
    in both counts 1, one without a valid pixel does not count. Not to be confused with maxF
    (`SaliencyMaxF`), which other papers report of saliency. NaN where no image has a label; a
    prediction that is NaN counts as probability 0.
    """

    higher_is_better: Mapping[str, bool] = {"miou": True}
    _THRESHOLDS = tuple(percent / 100 for percent in range(20, 91, 5))

    def __init__(self, task: Task) -> None:
        # Per threshold the sum over images, and last the number of images.
        self._sums = Pool(len(self._THRESHOLDS) + 1, torch.float64)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch.

        Logits (B, C, H, W), targets of the same shape in [0, 1], mask (B, H, W).
        """
        thresholds = torch.tensor(self._THRESHOLDS, device=prediction.device)
        probability = prediction.float().sigmoid().nan_to_num(nan=0.0).flatten(1)
        kept = valid.unsqueeze(1).expand_as(target).flatten(1)
        true = (target >= 0.5).flatten(1) & kept
        totals = torch.zeros(len(thresholds) + 1, dtype=torch.float64, device=prediction.device)
        seen = kept.any(1)
        for number, threshold in enumerate(thresholds):
            found = (probability > threshold) & kept
            hits, union = (found & true).sum(1).double(), (found | true).sum(1).double()
            overlap = torch.where(union > 0, hits / union.clamp_min(1), 1.0)
            totals[number] = (overlap * seen).sum()
        totals[-1] = seen.sum()
        self._sums.add(totals)

    def compute(self) -> dict[str, float]:
        """Return `miou`, 0 to 1."""
        *sums, images = self._sums.values.tolist()
        return {"miou": max(sums) / images if images else math.nan}

    def merge(self, other: Metric) -> None:
        """Add the other's sums."""
        assert isinstance(other, SaliencyIoU)
        self._sums.merge(other._sums)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._sums.reset()


@final
class SaliencyMaxF(Metric):
    """`max_f`: the largest F-measure of what is salient over thresholds, one for the whole split.

    `F = (1 + b) P R / (b P + R)` with precision P and recall R. Two forms are in print, whose
    values must not be mixed:

    * "images": P and R are means over images, `b = 1`, thresholds 0.20, 0.25, ..., 0.90, and a
      pixel is predicted where sigmoid(logit) is above (Vandenhende et al. 2021, "maxF"). Without a
      predicted pixel the precision of an image is 0, without a salient one both are.
    * "pixels": P and R are of all pixels of the split together, `b = 0.3`, thresholds 0.05, 0.10,
      ..., 0.95, and a pixel is predicted where sigmoid(logit) reaches them (InvPT, TaskPrompter and
      those that follow them).

    A pixel is salient where the target is at least 0.5; pixels that are not valid are neither
    predicted nor salient, and an image of such pixels alone does not count. NaN where nothing of
    the split is salient; a prediction that is NaN counts as probability 0.

    Args:
        form: "images" or "pixels".
    """

    higher_is_better: Mapping[str, bool] = {"max_f": True}

    def __init__(self, task: Task, *, form: Literal["images", "pixels"] = "images") -> None:
        self._by_image = form == "images"
        percents = range(20, 91, 5) if self._by_image else range(5, 100, 5)
        self._thresholds = tuple(percent / 100 for percent in percents)
        self._weight = 1.0 if self._by_image else 0.3
        # Per threshold the sums of precisions and of recalls over images, or the numbers of hits
        # and of predicted pixels; last the number of images, and that of salient pixels.
        self._sums = Pool(2 * len(self._thresholds) + 2, torch.float64)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch.

        Logits (B, C, H, W), targets of the same shape in [0, 1], mask (B, H, W).
        """
        probability = prediction.float().sigmoid().nan_to_num(nan=0.0).flatten(1)
        thresholds = torch.tensor(self._thresholds, device=prediction.device)
        kept = valid.unsqueeze(1).expand_as(target).flatten(1)
        true = (target >= 0.5).flatten(1) & kept
        salient = true.sum(1).double()
        sums = []
        for threshold in thresholds:
            found = probability > threshold if self._by_image else probability >= threshold
            found = found & kept
            hits, predicted = (found & true).sum(1).double(), found.sum(1).double()
            if self._by_image:
                sums += [hits / predicted.clamp_min(1), hits / salient.clamp_min(1)]
            else:
                sums += [hits, predicted]
        sums += [kept.any(1).double(), salient]
        self._sums.add(torch.stack(sums).sum(1))

    def compute(self) -> dict[str, float]:
        """Return `max_f`, 0 to 1."""
        *sums, images, salient = self._sums.values.cpu()
        if not salient:
            return {"max_f": math.nan}
        first, second = torch.stack(sums).view(-1, 2).T
        if self._by_image:
            precision, recall = first / images, second / images
        else:
            precision, recall = first / second.clamp_min(1), first / salient
        mean = self._weight * precision + recall
        f = (1 + self._weight) * precision * recall / torch.where(mean > 0, mean, 1.0)
        return {"max_f": float(f.max())}

    def merge(self, other: Metric) -> None:
        """Add the other's sums."""
        assert isinstance(other, SaliencyMaxF)
        self._sums.merge(other._sums)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._sums.reset()
