"""The worst gain in the ball: against golden vectors, by duality, and at its edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore_cagrad.balancer import CAGrad

Array = NDArray[np.float64]


def weights_of(balancer: CAGrad, rows: Array) -> Array:
    stacked = torch.from_numpy(rows)
    return balancer.weights(stacked @ stacked.T).numpy()


def test_golden(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz")
    for case in golden("balancers.json")["cases"]:
        rows, expected = arrays[case["matrix"]], arrays[f"cagrad_dir_{case['id']}"]
        balancer = CAGrad(c=case["cagrad"]["c"])
        found = weights_of(balancer, rows) @ rows
        assert balancer.status == "converged"
        assert np.linalg.norm(found - expected) <= 1e-12 * np.linalg.norm(expected), case["id"]


@pytest.mark.parametrize("seed", range(60))
def test_primal_and_dual_agree(seed: int) -> None:
    """The update's worst gain is the dual value of its weights: both are optimal."""
    random = np.random.default_rng(seed)
    count, c = int(random.integers(1, 13)), float(random.uniform(0.05, 0.95))
    rows = random.standard_normal((count, 20))
    if seed % 3:
        rows = 0.5 * rows + random.choice([-1, 1], (count, 1)) * random.standard_normal(20)
    rows *= 10 ** random.uniform(-(seed % 4), seed % 4, (count, 1))
    balancer = CAGrad(c=c)
    weights = weights_of(balancer, rows)
    assert balancer.status == "converged"
    update, mean = weights @ rows, rows.mean(axis=0)
    radius = c * np.linalg.norm(mean)
    assert np.linalg.norm(update - mean) == pytest.approx(radius, rel=1e-9)
    w = weights - 1 / count
    assert w.min() >= -1e-12 * w.max()
    w /= w.sum()
    dual = w @ rows @ mean + radius * np.linalg.norm(w @ rows)
    scale = np.linalg.norm(rows, axis=1) * radius / c
    gains = rows @ update
    assert (gains >= dual - 1e-10 * scale).all()
    assert np.min((gains - dual) / scale) <= 1e-10


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    ("rows", "expected", "status"),
    [
        ([[3, 4]], [4.2, 5.6], "converged"),
        ([[1, 0], [1, 0]], [1.4, 0], "converged"),
        ([[1, 0], [-2, 0]], [-0.3, 0], "converged"),
        ([[1, 0], [-1, 0]], [0, 0], "degenerate"),
        ([[0, 0], [1, 1]], [0.5, 0.5], "degenerate"),  # the mean opposes nobody
        ([[1, 0], [-1, 0], [0, 1]], [0, 1 / 3], "degenerate"),
        ([[1, 0], [-1, 0], [0.1, 1]], [0, 1 / 3], "degenerate"),
        ([[0, 0], [0, 0]], [0, 0], "degenerate"),
    ],
)
def test_edges(rows: Any, expected: Any, status: str, scale: float) -> None:
    balancer, gradients = CAGrad(c=0.4), scale * np.array(rows, dtype=np.float64)
    found = weights_of(balancer, gradients) @ gradients / scale
    assert found == pytest.approx(expected, abs=1e-9)
    assert balancer.status == status


def test_a_small_ball_is_the_mean_and_rescaling_is_the_authors() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 20))
    assert weights_of(CAGrad(c=1e-9), rows) == pytest.approx([0.25] * 4, rel=1e-6)
    plain, rescaled = (weights_of(CAGrad(c=0.5, rescale=x), rows) for x in (False, True))
    assert rescaled == pytest.approx(4 / 1.25 * plain, rel=1e-12)


def test_forty_tasks_and_weights_that_respond_to_gradients() -> None:
    rows = np.random.default_rng(1).standard_normal((40, 60))
    balancer = CAGrad()
    one = weights_of(balancer, rows)
    assert balancer.status == "converged"
    rows[0] *= 10
    assert np.abs(weights_of(balancer, rows) - one).max() > 0.01
