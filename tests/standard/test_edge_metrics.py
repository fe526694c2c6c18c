"""Metrics of edges: thinning and matching against slow ones, the F-measure by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mtlcore.metrics import MetricCollection
from mtlcore.plugins import settings_of
from mtlcore.standard.edges import EdgesODS, count_matches, thin
from mtlcore.standard.metrics import EdgesMetric
from mtlcore.tasks import Task
from mtlcore.testing import MetricContract

EDGES = Task(name="edges", kind="edges", channels=1)


class TestEdges(MetricContract):
    task = EDGES
    size = (9, 11)

    def make(self, task):
        return EdgesODS(task, tolerance=0.1)


class TestMetricCollection(TestEdges):
    def make(self, task):
        return MetricCollection([EdgesMetric(task), EdgesODS(task, tolerance=0.1)])


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
