"""Edges' mean error, normals' cosine, saliency's overlap: each against a loop over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mtlcore.standard.metrics_maps import (
    NormalsCosine,
    ProbabilityError,
    SaliencyIoU,
    SaliencyMaxF,
)
from mtlcore.tasks import Task
from mtlcore.testing import MetricContract

EDGES = Task(name="edges", kind="edges", channels=1)
NORMALS = Task(name="normals", kind="normals", channels=3)
SALIENCY = Task(name="saliency", kind="saliency", channels=1)


class TestProbabilityError(MetricContract):
    task = EDGES

    def make(self, task):
        return ProbabilityError(task)


class TestProbabilityErrorOfSaliency(TestProbabilityError):
    task = SALIENCY


class TestNormalsCosine(MetricContract):
    task = NORMALS

    def make(self, task):
        return NormalsCosine(task)


class TestSaliencyIoU(MetricContract):
    task = SALIENCY

    def make(self, task):
        return SaliencyIoU(task)


class TestSaliencyMaxF(MetricContract):
    task = SALIENCY

    def make(self, task):
        return SaliencyMaxF(task)


class TestSaliencyMaxFOfPixels(MetricContract):
    task = SALIENCY

    def make(self, task):
        return SaliencyMaxF(task, form="pixels")


def drawn(channels: int, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    prediction = torch.randn(5, channels, 6, 7, generator=rng)
    noise = torch.randn(prediction.shape, generator=rng)
    return prediction, noise, torch.rand(5, 6, 7, generator=rng) > 0.3


def test_edges_mae_is_the_mean_over_valid_pixels() -> None:
    prediction, noise, valid = drawn(1)
    target = noise.sigmoid()
    metric = ProbabilityError(EDGES)
    metric.update(prediction[:2], target[:2], valid[:2])
    metric.update(prediction[2:], target[2:], valid[2:])
    z, t, kept = (x.double().numpy() for x in (prediction[:, 0], target[:, 0], valid))
    errors = [
        abs(1 / (1 + math.exp(-a)) - b)
        for a, b, k in zip(z.flat, t.flat, kept.flat, strict=True)
        if k
    ]
    assert metric.compute() == {"mae": pytest.approx(sum(errors) / len(errors), rel=1e-6)}


def test_normals_cosine_is_the_mean_of_the_cosine() -> None:
    prediction, noise, valid = drawn(3, 1)
    target = F.normalize(noise, dim=1)
    metric = NormalsCosine(NORMALS)
    metric.update(3 * prediction, target, valid)
    a = prediction.double().numpy().transpose(0, 2, 3, 1)[valid.numpy()]
    b = target.double().numpy().transpose(0, 2, 3, 1)[valid.numpy()]
    expected = np.mean([np.dot(x, y) / np.linalg.norm(x) for x, y in zip(a, b, strict=True)])
    assert metric.compute() == {"cosine": pytest.approx(expected, abs=1e-6)}


def saliency_by_hand(prediction, target, valid) -> float:
    """As published: Jaccard per image, a mean over images, the best of fifteen thresholds."""
    means = []
    for threshold in np.linspace(0.2, 0.9, 15):
        overlaps = []
        for z, t, kept in zip(prediction[:, 0], target[:, 0], valid, strict=True):
            if not kept.any():
                continue
            found = (1 / (1 + np.exp(-z[kept])) > threshold).tolist()
            true = (t[kept] >= 0.5).tolist()
            both = sum(a and b for a, b in zip(found, true, strict=True))
            either = sum(a or b for a, b in zip(found, true, strict=True))
            overlaps.append(both / either if either else 1.0)
        means.append(sum(overlaps) / len(overlaps))
    return max(means)


def test_saliency_is_the_published_overlap() -> None:
    prediction, noise, valid = drawn(1, 2)
    target = (prediction + noise > 0.8).float()
    target[1], prediction[1] = 0.0, -9.0  # nothing salient, nothing found
    valid[3] = False  # an image without a label
    metric = SaliencyIoU(SALIENCY)
    for i in range(5):
        metric.update(prediction[i : i + 1], target[i : i + 1], valid[i : i + 1])
    expected = saliency_by_hand(*(x.numpy() for x in (prediction, target, valid)))
    assert metric.compute() == {"miou": pytest.approx(expected, abs=1e-9)}
    # It is a mean over images: one image of one salient pixel counts as much as a large one.
    pooled = (prediction.sigmoid() > 0.5) & valid[:, None]
    true = (target > 0) & valid[:, None]
    assert expected != pytest.approx(float((pooled & true).sum() / (pooled | true).sum()), abs=1e-3)


def test_saliency_counts_empty_images_as_right_and_unlabelled_ones_not_at_all() -> None:
    metric, empty = SaliencyIoU(SALIENCY), torch.zeros(1, 1, 4, 4)
    metric.update(empty, empty, torch.zeros(1, 4, 4, dtype=torch.bool))
    assert math.isnan(metric.compute()["miou"])
    metric.update(empty - 9, empty, torch.ones(1, 4, 4, dtype=torch.bool))
    assert metric.compute() == {"miou": 1.0}
    metric.update(empty - 9, empty + 1, torch.ones(1, 4, 4, dtype=torch.bool))
    assert metric.compute() == {"miou": 0.5}


def max_f_by_hand(prediction, target, valid, form) -> float:
    """As published, with loops over thresholds and images; a weight of 1 or 0.3."""
    best, weight = 0.0, 1.0 if form == "images" else 0.3
    steps = np.linspace(0.2, 0.9, 15) if form == "images" else np.arange(1, 20) / 20
    for threshold in steps:
        hits, predicted, salient = [], [], []
        for z, t, kept in zip(prediction[:, 0], target[:, 0], valid, strict=True):
            if not kept.any():
                continue
            found = 1 / (1 + np.exp(-z[kept].astype(np.float64))) > threshold
            hits.append(int((found & (t[kept] >= 0.5)).sum()))
            predicted.append(int(found.sum()))
            salient.append(int((t[kept] >= 0.5).sum()))
        if form == "images":
            p = np.mean([h / n if n else 0 for h, n in zip(hits, predicted, strict=True)])
            r = np.mean([h / n if n else 0 for h, n in zip(hits, salient, strict=True)])
        else:
            p, r = sum(hits) / max(sum(predicted), 1), sum(hits) / sum(salient)
        best = max(best, (1 + weight) * p * r / (weight * p + r) if p + r else 0)
    return best


@pytest.mark.parametrize("form", ["images", "pixels"])
def test_max_f_is_the_published_one(form: str) -> None:
    prediction, noise, valid = drawn(1, 3)
    target = (prediction + noise > 0.8).float()
    target[1] = 0.0  # nothing salient
    prediction[2] -= 9  # nothing found
    valid[3] = False  # an image without a label
    metric = SaliencyMaxF(SALIENCY, form=form)
    for part in zip(*(x.split([2, 1, 2]) for x in (prediction, target, valid)), strict=True):
        metric.update(*part)
    expected = max_f_by_hand(*(x.numpy() for x in (prediction, target, valid)), form)
    assert metric.compute() == {"max_f": pytest.approx(expected, abs=1e-9)}


def test_max_f_of_few_pixels() -> None:
    """Two images of four pixels: probabilities .8, .8, .1, .1 and .6, .1, .1, .1."""
    prediction = torch.tensor([[0.8, 0.8, 0.1, 0.1], [0.6, 0.1, 0.1, 0.1]]).logit()
    target = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    maps = (prediction.view(2, 1, 2, 2), target.view(2, 1, 2, 2))
    images, pixels = SaliencyMaxF(SALIENCY), SaliencyMaxF(SALIENCY, form="pixels")
    for metric in (images, pixels):
        metric.update(*maps, torch.ones(2, 2, 2, dtype=torch.bool))
    # Below .6: precisions 1/2 and 1, recalls 1 and 1/2, so that both are 3/4 in the mean.
    assert images.compute() == {"max_f": pytest.approx(0.75)}
    # Below .6: 2 hits of 3 found and of 3 salient.
    assert pixels.compute() == {"max_f": pytest.approx(2 / 3)}


def test_max_f_is_unknown_where_nothing_is_salient() -> None:
    metric, empty = SaliencyMaxF(SALIENCY), torch.zeros(1, 1, 4, 4)
    metric.update(empty, empty, torch.ones(1, 4, 4, dtype=torch.bool))
    assert math.isnan(metric.compute()["max_f"])
    metric.update(empty - 9, empty + 1, torch.ones(1, 4, 4, dtype=torch.bool))
    assert metric.compute() == {"max_f": 0.0}
