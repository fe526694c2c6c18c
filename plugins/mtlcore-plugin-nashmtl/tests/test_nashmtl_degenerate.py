"""Where no weights solve the equation: gradients that cancel, and tasks without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtlcore.balancing.solvers import Array, bargain
from mtlcore.balancing.solvers.bargaining import minimise
from mtlcore_nashmtl.balancer import NashMTL

RANDOM = np.random.default_rng(0)
FIRST, SECOND, THIRD, FOURTH = RANDOM.standard_normal((4, 20))
PLANE = np.linalg.qr(np.stack([FIRST, SECOND], axis=1))[0].T
ANGLES = 2 * np.pi * np.arange(3) / 3
TRIANGLE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1) @ PLANE

# Rows, and how many of them, from the first on, cancel.
CANCELLING = {
    "opposite": ([FIRST, -FIRST, THIRD], 2),
    "opposite, of unequal length": ([1e-3 * FIRST, -1e3 * FIRST, THIRD, FOURTH], 2),
    "two opposite pairs": ([FIRST, -FIRST, SECOND, -2 * SECOND, THIRD], 4),
    "three in a plane": ([*TRIANGLE, 5 * THIRD], 3),
    "three in a plane and a fourth": ([*TRIANGLE, 1e-3 * FIRST, 5 * THIRD, FOURTH], 4),
    "multiples of one": ([FIRST, 2 * FIRST, -0.5 * FIRST, THIRD], 3),
    "unequal parts": ([PLANE[0], 0.01 * PLANE[1] - PLANE[0], -PLANE[1], THIRD, FOURTH], 3),
    "opposite up to single precision": ([FIRST, 1e-7 * FOURTH - FIRST, THIRD], 2),
}


def check_limit(rows: Array, still: int, tolerance: float) -> None:
    """The update leaves the first tasks alone; the others gain alike, and nothing is wasted."""
    agreed = bargain(rows @ rows.T)
    assert not agreed.solved
    update = agreed.weights @ rows
    cosines = rows @ update / np.linalg.norm(rows, axis=1)
    assert cosines[:still] == pytest.approx(np.zeros(still), abs=tolerance)
    gains = agreed.weights[still:] * (rows[still:] @ update)
    assert gains == pytest.approx(np.ones(len(rows) - still), abs=tolerance)
    assert agreed.norm == pytest.approx((len(rows) - still) ** 0.5, abs=tolerance)
    assert np.linalg.norm(update) == pytest.approx(agreed.norm, abs=tolerance)
    assert (agreed.importance > 0).all()
    alone = 1 / np.linalg.norm(rows[:still], axis=1)
    assert agreed.importance[:still] == pytest.approx(alone, rel=1e-12)
    assert np.array_equal(agreed.importance[still:], agreed.weights[still:])


@pytest.mark.parametrize("name", CANCELLING)
def test_the_others_bargain_over_what_is_left(name: str) -> None:
    rows, still = CANCELLING[name]
    check_limit(np.stack(rows), still, 1e-6)


@pytest.mark.parametrize("name", CANCELLING)
def test_gradients_of_single_precision(name: str) -> None:
    rows, still = CANCELLING[name]
    check_limit(np.stack(rows).astype(np.float32).astype(np.float64), still, 1e-5)


@pytest.mark.parametrize("name", CANCELLING)
def test_the_order_of_tasks_does_not_matter(name: str) -> None:
    rows = np.stack(CANCELLING[name][0])
    order = np.random.default_rng(1).permutation(len(rows))
    one, other = bargain(rows @ rows.T), bargain(rows[order] @ rows[order].T)
    assert other.weights @ rows[order] == pytest.approx(one.weights @ rows, abs=1e-6)
    assert other.importance == pytest.approx(one.importance[order], rel=1e-6)


def test_it_is_the_limit() -> None:
    """Of solutions for `C + e I`, whose updates come closer as e shrinks."""
    rows, _ = CANCELLING["three in a plane"]
    units = np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
    limit = bargain(units @ units.T).weights @ units
    distances = []
    for e in (1e-2, 1e-3, 1e-4, 1e-5):
        weights = minimise(units @ units.T + e * np.eye(len(units)))
        assert weights is not None
        distances.append(np.linalg.norm(weights @ units - limit))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4


def test_nothing_is_left() -> None:
    for rows in ([FIRST, -FIRST], [FIRST, 2 * FIRST, -0.5 * FIRST], [*TRIANGLE]):
        balancer = NashMTL(max_norm=1.0, weigh_heads=True)
        matrix = np.stack(rows)
        shared, heads = balancer.weights(torch.from_numpy(matrix @ matrix.T)).numpy()
        assert balancer.status == "degenerate"
        assert shared.tolist() == [0.0] * len(rows)
        assert heads == pytest.approx(1 / np.linalg.norm(matrix, axis=1), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_no_scale_matters(scale: float) -> None:
    rows = np.stack(CANCELLING["three in a plane"][0])
    one, other = bargain(rows @ rows.T), bargain((scale * rows) @ (scale * rows).T)
    assert not other.solved
    assert other.weights * scale == pytest.approx(one.weights, abs=1e-7)


def test_more_tasks_than_directions() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 5))
    agreed = bargain(rows @ rows.T)
    assert not agreed.solved
    assert agreed.weights.tolist() == [0.0] * 40
    # As singular, but all on one side: they agree as well as any.
    rows[:, 0] = 5
    agreed = bargain(rows @ rows.T)
    assert agreed.solved
    assert np.abs(agreed.weights * (rows @ (agreed.weights @ rows)) - 1).max() <= 1e-10


def test_a_task_without_gradient() -> None:
    rows = np.stack([FIRST, np.zeros(20), SECOND])
    balancer, alone = NashMTL(weigh_heads=True), NashMTL(weigh_heads=True)
    found = balancer.weights(torch.from_numpy(rows @ rows.T))
    others = alone.weights(torch.from_numpy(rows[[0, 2]] @ rows[[0, 2]].T))
    assert balancer.status == "degenerate"
    assert alone.status == "converged"
    assert torch.equal(found[:, [0, 2]], others)
    assert found[:, 1].tolist() == [0.0, 1.0]


def test_no_task_has_a_gradient() -> None:
    balancer = NashMTL(max_norm=1.0, weigh_heads=True)
    found = balancer.weights(torch.zeros(3, 3, dtype=torch.float64))
    assert balancer.status == "degenerate"
    assert found.tolist() == [[0.0] * 3, [1.0] * 3]


def test_the_status_is_the_last_calls() -> None:
    balancer = NashMTL()
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    for gramian, status in ((opposite, "degenerate"), (torch.eye(2), "converged")):
        balancer.weights(gramian)
        assert balancer.status == status


def test_noise_that_makes_it_no_gramian() -> None:
    """Negative eigenvalues, as of sums in half precision or worse: finite, and said so."""
    random = np.random.default_rng(0)
    for _ in range(200):
        count = int(random.integers(2, 12))
        rows = random.standard_normal((count, int(random.integers(1, 2 * count))))
        noise = random.choice([1e-7, 4e-3, 0.3]) * random.standard_normal((count, count))
        gramian = (rows @ rows.T) * (1 + noise + noise.T)
        gramian[np.diag_indices(count)] = (rows**2).sum(axis=1)
        agreed = bargain(gramian)
        assert np.isfinite(agreed.weights).all()
        assert (agreed.importance > 0).all()
        if agreed.solved:  # for cosines that can be
            lengths = np.sqrt(np.outer(gramian.diagonal(), gramian.diagonal()))
            possible = gramian.clip(-lengths, lengths)
            assert np.abs(agreed.weights * (possible @ agreed.weights) - 1).max() <= 1e-6
