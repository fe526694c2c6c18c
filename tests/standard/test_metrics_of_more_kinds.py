"""More figures: areas under curves against all pairs, edges against a matcher by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mtlcore.metrics import Metric, MetricCollection
from mtlcore.plugins import settings_of
from mtlcore.standard.edges import EdgesODS, count_matches, thin
from mtlcore.standard.metrics import DepthMetric, EdgesMetric
from mtlcore.standard.metrics_vectors import (
    ClassificationMetric,
    MultiLabelMetric,
    RegressionMetric,
    area_under_curve,
)
from mtlcore.tasks import Task
from mtlcore.testing import MetricContract

CLASSES = Task(name="classes", kind="classification", channels=4)
ANSWER = Task(name="answer", kind="classification", channels=2)
LABELS = Task(name="labels", kind="multilabel", channels=3)
VALUES = Task(name="values", kind="regression", channels=3)
DEPTH = Task(name="depth", kind="depth", channels=1)
EDGES = Task(name="edges", kind="edges", channels=1)


class TestClassification(MetricContract):
    task = CLASSES

    def make(self, task):
        return ClassificationMetric(task)


class TestTwoClasses(TestClassification):
    task = ANSWER


class TestMultiLabelMetric(MetricContract):
    task = LABELS

    def make(self, task):
        return MultiLabelMetric(task)


class TestRegression(MetricContract):
    task = VALUES

    def make(self, task):
        return RegressionMetric(task)


class TestRegressionOfMaps(TestRegression):
    task = Task(name="flow", kind="flow", channels=2)


class TestEdges(MetricContract):
    task = EDGES
    size = (9, 11)

    def make(self, task):
        return EdgesODS(task, tolerance=0.1)


class TestSeveralMetrics(TestEdges):
    def make(self, task):
        return MetricCollection([EdgesMetric(task), EdgesODS(task, tolerance=0.1)])


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


# --- edges


def slow_thin(mask):
    """Guo and Hall's rules, pixel by pixel."""
    image = np.pad(mask, 1).astype(int)
    while True:
        changed = False
        for second in (False, True):
            gone = []
            for y, x in zip(*np.nonzero(image), strict=True):
                (nw, n, ne), (w, _, e), (sw, s, se) = image[y - 1 : y + 2, x - 1 : x + 2]
                corners = ((e, ne, n), (n, nw, w), (w, sw, s), (s, se, e))
                arcs = sum(not a and bool(b or c) for a, b, c in corners)
                one = sum(map(bool, (e | ne, n | nw, w | sw, s | se)))
                two = sum(map(bool, (ne | n, nw | w, sw | s, se | e)))
                side = w and (sw or s or not nw) if second else e and (ne or n or not se)
                if arcs == 1 and min(one, two) in (2, 3) and not side:
                    gone.append((y, x))
            for place in gone:
                image[place] = 0
                changed = True
        if not changed:
            return image[1:-1, 1:-1].astype(bool)


def greedy_matches(predicted, true, radius):
    """Every pair, sorted, nearest first."""
    pairs = sorted(
        ((q[0] - p[0]) ** 2 + (q[1] - p[1]) ** 2, q[0] - p[0], q[1] - p[1], *p, *q)
        for p in np.argwhere(true).tolist()
        for q in np.argwhere(predicted).tolist()
    )
    used_true, used_predicted = set(), set()
    for square, _, _, *places in pairs:
        p, q = tuple(places[:2]), tuple(places[2:])
        if square <= radius * radius and p not in used_true and q not in used_predicted:
            used_true.add(p)
            used_predicted.add(q)
    return len(used_true)


def most_matches(predicted, true, radius):
    """The largest number of pairs, by augmenting paths."""
    partners = {
        tuple(p): [
            tuple(q)
            for q in np.argwhere(predicted).tolist()
            if (q[0] - p[0]) ** 2 + (q[1] - p[1]) ** 2 <= radius * radius
        ]
        for p in np.argwhere(true).tolist()
    }
    taken = {}

    def place(p, tried):
        for q in partners[p]:
            if q not in tried:
                tried.add(q)
                if q not in taken or place(taken[q], tried):
                    taken[q] = p
                    return True
        return False

    return sum(place(p, set()) for p in partners)


def blobs(seed, size=(14, 17), share=0.5):
    rng = np.random.default_rng(seed)
    noise = rng.random((size[0] + 2, size[1] + 2))
    smooth = sum(noise[y : y + size[0], x : x + size[1]] for y in range(3) for x in range(3))
    return smooth > np.quantile(smooth, 1 - share)


def components(mask):
    """The number of parts whose pixels touch, also at corners."""
    left, count = {tuple(p) for p in np.argwhere(mask).tolist()}, 0
    while left:
        count += 1
        stack = [left.pop()]
        while stack:
            y, x = stack.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            stack += near
    return count


@pytest.mark.parametrize("seed", range(12))
def test_thinning_is_guo_and_hall(seed):
    mask = blobs(seed, share=(0.2, 0.5, 0.8)[seed % 3])
    before = mask.copy()
    thinned = thin(mask)
    assert np.array_equal(thinned, slow_thin(mask))
    assert np.array_equal(mask, before)
    assert not (thinned & ~mask).any()
    assert np.array_equal(thin(thinned), thinned)
    assert components(thinned) == components(mask)


def test_thinning_of_simple_shapes():
    bar = np.zeros((9, 30), dtype=bool)
    bar[2:7, 3:27] = True
    assert (thin(bar).sum(0)[6:24] == 1).all()
    line = np.zeros((9, 30), dtype=bool)
    line[4, 3:27] = True
    assert np.array_equal(thin(line), line)
    full = thin(np.ones((8, 8), dtype=bool))
    assert 1 <= full.sum() <= 8
    assert not thin(np.zeros((3, 3), dtype=bool)).any()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("radius", [0.0, 0.9, 1.0, 1.5, 3.2])
def test_matching_is_greedy_and_not_far_from_the_best(seed, radius):
    rng = np.random.default_rng(seed)
    predicted, true = (rng.random((9, 8)) < 0.2 for _ in range(2))
    found = count_matches(predicted, true, radius)
    best = most_matches(predicted, true, radius)
    assert found == greedy_matches(predicted, true, radius)
    assert best / 2 <= found <= best
    if radius < 1:
        assert found == (predicted & true).sum()


def slow_ods(images, radius):
    """F at every threshold from the slow thinning and the slow matching."""
    scores = []
    for step in range(1, 100):
        matched = predicted = true = 0
        for probability, edges, valid in images:
            kept = slow_thin((probability >= np.float32(step) / np.float32(100)) & valid)
            matched += greedy_matches(kept, edges & valid, radius)
            predicted += kept.sum()
            true += (edges & valid).sum()
        scores.append(2 * matched / (predicted + true))
    return max(scores)


def test_ods_against_brute_force():
    images = []
    metric = EdgesODS(EDGES, tolerance=0.1)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        edges = slow_thin(blobs(seed, (8, 10), 0.4))
        near = edges | np.roll(edges, 1, axis=0)
        probability = (0.6 * near + 0.4 * rng.random((8, 10))).round(1).clip(0.02, 0.98)
        valid = rng.random((8, 10)) > 0.1
        logits = torch.from_numpy(probability).logit().float()
        # What the metric sees of a probability after the way through a logit.
        images.append((logits.sigmoid().numpy(), edges, valid))
        truth = torch.from_numpy(edges).float()
        metric.update(logits[None, None], truth[None, None], torch.from_numpy(valid)[None])
    expected = slow_ods(images, 0.1 * math.hypot(8, 10))
    assert metric.compute()["ods_f"] == pytest.approx(expected, rel=1e-12)
    assert 0.2 < expected < 1


def drawn(shift, thickness=1):
    """A vertical line, and a prediction of it beside its place."""
    truth = torch.zeros(1, 1, 60, 80)
    truth[..., 40] = 1
    logits = torch.full((1, 1, 60, 80), -8.0)
    logits[..., 40 + shift : 40 + shift + thickness] = 8
    return logits, truth, torch.ones(1, 60, 80, dtype=torch.bool)


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0)])
def test_edges_may_be_a_little_off(shift, expected):
    """At a diagonal of 100 pixels 0.02 is a distance of 2."""
    metric = EdgesODS(EDGES, tolerance=0.02)
    metric.update(*drawn(shift))
    assert metric.compute()["ods_f"] == expected
    exact = EdgesMetric(EDGES)
    exact.update(*drawn(shift))
    assert shift == 0 or exact.compute()["f1"] < 0.1


def test_thick_predictions_are_thinned():
    metric = EdgesODS(EDGES, tolerance=0.02)
    metric.update(*drawn(-1, thickness=3))
    assert metric.compute()["ods_f"] > 0.95


def test_published_tolerance_and_what_it_explains():
    (setting,) = settings_of(EdgesODS)
    assert (setting.name, setting.default) == ("tolerance", 0.0075)
    assert setting.meaning
    with pytest.raises(ValueError, match="tolerance"):
        EdgesODS(EDGES, tolerance=-0.1)


def test_one_threshold_for_the_whole_split():
    """Each image alone is perfect at a threshold of its own; together they are not."""
    low, high = drawn(0), drawn(0)
    faint = torch.where(low[0] > 0, torch.tensor(0.3).logit(), torch.tensor(0.05).logit())
    strong = torch.where(high[0] > 0, torch.tensor(0.9).logit(), torch.tensor(0.6).logit())
    figures = []
    for parts in ([faint], [strong], [faint, strong]):
        metric = EdgesODS(EDGES)
        for logits in parts:
            metric.update(logits, *low[1:])
        figures.append(metric.compute()["ods_f"])
    assert figures[:2] == [1.0, 1.0]
    assert figures[2] < 1


def test_no_edges_is_nan_and_a_nan_is_no_edge():
    logits, truth, valid = drawn(0)
    metric = EdgesODS(EDGES)
    metric.update(logits, torch.zeros_like(truth), valid)
    assert math.isnan(metric.compute()["ods_f"])
    spoilt = torch.where(logits < 0, torch.nan, logits)
    metric = EdgesODS(EDGES)
    metric.update(spoilt, truth, valid)
    assert metric.compute()["ods_f"] == 1.0


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
