"""Metrics of depth, of single labels and of vectors: areas under curves against all pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mtlcore.metrics import Metric
from mtlcore.standard.metrics import DepthMetric
from mtlcore.standard.metrics_vectors import (
    ClassificationMetric,
    MultiLabelF1,
    MultiLabelMetric,
    RegressionMetric,
    TopAccuracy,
    area_under_curve,
)
from mtlcore.tasks import Task
from mtlcore.testing import MetricContract

CLASSES = Task(name="classes", kind="classification", channels=4)
ANSWER = Task(name="answer", kind="classification", channels=2)
LABELS = Task(name="labels", kind="multilabel", channels=3)
VALUES = Task(name="values", kind="regression", channels=3)
DEPTH = Task(name="depth", kind="depth", channels=1)


class TestClassification(MetricContract):
    task = CLASSES

    def make(self, task):
        return ClassificationMetric(task)


class TestTwoClasses(TestClassification):
    task = ANSWER


class TestTopAccuracy(MetricContract):
    task = CLASSES

    def make(self, task):
        return TopAccuracy(task, k=2)


class TestMultiLabelMetric(MetricContract):
    task = LABELS

    def make(self, task):
        return MultiLabelMetric(task)


class TestMultiLabelF1(MetricContract):
    task = LABELS

    def make(self, task):
        return MultiLabelF1(task)


def test_f_measures_of_labels_by_hand() -> None:
    """Of label 0 one of two is found, of label 1 nothing is there, label 2 is said too often."""
    metric = MultiLabelF1(LABELS)
    logits = torch.tensor([[1.0, -1, 1], [-1, -1, 1], [1, 1, -1]])
    target = torch.tensor([[1.0, 0, 1], [1, 0, 0], [1, 1, 0]])
    valid = torch.tensor([[True, True, True], [True, True, True], [False, False, True]])
    metric.update(logits, target, valid)
    # Label 0: TP 1, FN 1 -> 2/3. Label 2: TP 1, FP 1 -> 2/3. Together TP 2 of 2 + 4... -> 4/6.
    assert metric.compute() == pytest.approx({"micro_f1": 4 / 6, "macro_f1": 2 / 3})


class TestRegression(MetricContract):
    task = VALUES

    def make(self, task):
        return RegressionMetric(task)


class TestRegressionOfMaps(TestRegression):
    task = Task(name="flow", kind="flow", channels=2)


# --- depth


def test_depth_figures():
    metric = DepthMetric(DEPTH)
    target = torch.tensor([2.0, 2.0, 2.0, 2.0, 1.0, 9.0]).reshape(1, 1, 1, 6)
    prediction = torch.tensor([2.4, 2.6, 1.61, 1.5, -1.0, 0.0]).reshape(1, 1, 1, 6)
    valid = torch.tensor([True] * 5 + [False]).reshape(1, 1, 6)
    metric.update(prediction, target, valid)
    errors = np.array([0.4, 0.6, 0.39, 0.5, 2.0])
    figures = metric.compute()
    assert list(figures) == ["abs_error", "rel_error", "rmse", "delta1"]
    assert figures["abs_error"] == pytest.approx(errors.mean())
    assert figures["rmse"] == pytest.approx(math.sqrt((errors**2).mean()))
    assert figures["delta1"] == pytest.approx(2 / 5)


# --- the class among the first k


def test_top_accuracy_counts_classes_above_the_own():
    logits = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1], [1, 1, 1, 1], [4, 3, 2, 1]])
    classes = torch.tensor([0, 1, 2, 0, 0])
    valid = torch.tensor([True, True, True, True, False])
    for k, right in ((1, 1), (2, 2), (3, 3), (4, 4)):
        metric = TopAccuracy(CLASSES, k=k)
        metric.update(logits, classes, valid)
        assert metric.compute() == {f"top{k}_accuracy": right / 4}
    assert list(TopAccuracy(CLASSES).higher_is_better) == ["top5_accuracy"]


def test_top_one_is_the_accuracy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator)
    classes = torch.randint(4, (50,), generator=generator)
    first, plain = TopAccuracy(CLASSES, k=1), ClassificationMetric(CLASSES)
    for metric in (first, plain):
        metric.update(logits, classes, torch.ones(50, dtype=torch.bool))
    assert first.compute()["top1_accuracy"] == plain.compute()["accuracy"]


def test_a_network_that_says_nothing_is_not_right():
    for value in (0.0, math.nan):
        metric = TopAccuracy(CLASSES, k=3)
        metric.update(torch.full((2, 4), value), torch.tensor([0, 3]), torch.tensor([True, True]))
        assert metric.compute() == {"top3_accuracy": 0.0}


# --- areas under curves


def by_pairs(scores, positive):
    high, low = scores[positive], scores[~positive]
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in high for b in low]
    return sum(wins) / len(wins) if wins else math.nan


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_area_is_the_part_of_pairs_in_order(levels, seed):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (60,), generator=rng) / 7 - 1
    positive = torch.rand(60, generator=rng) < 0.3
    assert area_under_curve(scores, positive) == by_pairs(scores, positive)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        converted = scores.to(dtype)
        assert area_under_curve(converted, positive) == by_pairs(converted, positive)


def test_area_without_a_pair_is_nan():
    scores = torch.rand(4)
    for positive in (torch.ones(4), torch.zeros(4)):
        assert math.isnan(area_under_curve(scores, positive.bool()))
    scores[2] = math.nan
    assert math.isnan(area_under_curve(scores, torch.tensor([True, False, False, True])))


def test_large_areas_are_exact():
    """200,000 scores in pairs of ties; products of counts do not fit 32 bits."""
    scores = torch.arange(200_000) // 2
    positive = torch.arange(200_000) % 2 == 0
    assert area_under_curve(scores, positive) == 0.5


def test_area_of_two_classes_is_that_of_their_logits_difference():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randint(-2, 3, (50, 2), generator=rng).float()
    target, valid = torch.randint(2, (50,), generator=rng), torch.rand(50, generator=rng) > 0.2
    metric = ClassificationMetric(ANSWER)
    for part in zip(logits.split(7), target.split(7), valid.split(7), strict=True):
        metric.update(*part)
    scores = (logits[:, 1] - logits[:, 0])[valid]
    assert metric.compute()["auc"] == by_pairs(scores, target[valid] == 1)


# --- single labels


def test_accuracy_and_macro_f1():
    """Class 3 occurs nowhere, class 2 in the labels alone."""
    predicted, target = [0, 0, 1, 1, 1, 0, 3], [0, 0, 1, 1, 0, 2, 3]
    metric = ClassificationMetric(CLASSES)
    valid = torch.tensor([True] * 6 + [False])
    metric.update(torch.eye(4)[predicted], torch.tensor(target), valid)
    figures = metric.compute()
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert figures["macro_f1"] == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)
    assert "auc" not in figures and "auc" in ClassificationMetric(ANSWER).higher_is_better


# --- yes-or-no labels


def test_multilabel_figures():
    rng = torch.Generator().manual_seed(1)
    logits = torch.randint(-3, 4, (40, 3), generator=rng).float()
    target = (torch.rand(40, 3, generator=rng) < 0.4).float()
    target[:, 2] = 0  # without a positive: no area of its own
    valid = torch.rand(40, 3, generator=rng) > 0.2
    metric = MultiLabelMetric(LABELS)
    metric.update(logits, target, valid)
    figures = metric.compute()
    assert figures["auc"] == by_pairs(logits[valid], target[valid] > 0)
    own = [by_pairs(logits[valid[:, i], i], target[valid[:, i], i] > 0) for i in range(2)]
    assert figures["macro_auc"] == pytest.approx(sum(own) / 2)
    said, true = logits[valid] > 0, target[valid] > 0
    hits, misses, false = ((said & true), (~said & true), (said & ~true))
    f1 = 2 * hits.sum() / (2 * hits.sum() + misses.sum() + false.sum())
    assert figures["f1"] == pytest.approx(float(f1))


def test_scores_are_copied():
    metric = MultiLabelMetric(LABELS)
    logits, target = torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    metric.update(logits, target, valid)
    logits.neg_()
    valid.zero_()
    assert metric.compute() == {"auc": 1.0, "macro_auc": pytest.approx(math.nan, nan_ok=True),
                                "f1": 1.0}  # fmt: skip


# --- values


def test_regression_figures():
    rng = torch.Generator().manual_seed(2)
    guess, truth = torch.randn(30, 3, generator=rng), torch.randn(30, 3, generator=rng)
    truth[:, 2] = 5.0  # nothing to explain
    valid = torch.rand(30, 3, generator=rng) > 0.3
    metric = RegressionMetric(VALUES)
    for part in zip(guess.split(4), truth.split(4), valid.split(4), strict=True):
        metric.update(*part)
    figures = metric.compute()
    error = (guess - truth)[valid].double()
    assert figures["mae"] == pytest.approx(float(error.abs().mean()))
    assert figures["rmse"] == pytest.approx(float(error.square().mean().sqrt()))
    explained = []
    for i in range(2):
        y, e = (x[valid[:, i], i].double() for x in (truth, guess - truth))
        explained.append(1 - float(e.square().sum() / (y - y.mean()).square().sum()))
    assert figures["r2"] == pytest.approx(sum(explained) / 2)


def test_r2_far_from_zero():
    """Squares of labels around a million would lose a spread of one."""
    truth = 1e6 + torch.arange(64.0).reshape(64, 1) % 2
    task = Task(name="year", kind="regression", channels=1)
    metric = RegressionMetric(task)
    for part in truth.split(5):
        metric.update(part + 0.5, part, torch.ones(len(part), 1, dtype=torch.bool))
    assert metric.compute()["r2"] == pytest.approx(0.0, abs=1e-9)


# --- all of them

METRICS: dict[str, tuple[Task, Callable[[Task], Metric]]] = {
    "classification": (ANSWER, ClassificationMetric),
    "multilabel": (LABELS, MultiLabelMetric),
    "regression": (VALUES, RegressionMetric),
}


@pytest.mark.parametrize("kind", METRICS)
def test_updates_in_inference_mode_merge_outside(kind):
    task, make = METRICS[kind]
    target = torch.randint(2, (6, *task.target_shape(()))).to(getattr(torch, task.dtype))
    valid = torch.ones(6, *task.valid_shape(()), dtype=torch.bool)
    with torch.inference_mode():
        one, other = make(task), make(task)
        for metric in (one, other):
            metric.update(torch.randn(6, task.channels), target, valid)
    one.merge(other)
    one.update(torch.randn(6, task.channels), target, valid)
    assert list(one.compute()) == list(one.higher_is_better)
