"""Projections onto the cone without conflicts: golden vectors, conditions, identities, edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore.balancing import GramianBalancer
from mtlcore_upgrad.balancer import DualProj, UPGrad

Array = NDArray[np.float64]
BOTH = {"upgrad": UPGrad, "dualproj": DualProj}
FIRST, SECOND, THIRD = np.random.default_rng(5).standard_normal((3, 30))


def update_of(balancer: GramianBalancer, rows: Any) -> Array:
    stacked = torch.from_numpy(np.stack(rows).astype(np.float64))
    found = (balancer.weights(stacked @ stacked.T) @ stacked).numpy()
    assert balancer.status == "converged"
    return np.asarray(found)


@pytest.mark.parametrize("name", BOTH)
def test_golden(
    name: str, golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz") | golden_arrays("golden_more.npz")
    for case in golden("golden_more.json")["cases"]:
        rows, expected = arrays[case["matrix"]], arrays[f"{name}_mean_dir_{case['id']}"]
        tolerance = 1e-12 * np.linalg.norm(expected)
        assert np.linalg.norm(update_of(BOTH[name](), rows) - expected) <= tolerance, case["id"]
        found = update_of(BOTH[name](reduction="sum"), rows)
        assert np.linalg.norm(found - case["K"] * expected) <= case["K"] * tolerance


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_golden_degenerate(name: str, scale: float, golden: Callable[[str], Any]) -> None:
    for case in golden("golden_more.json")["degenerate"]:
        rows = scale * np.array(case["rows"])
        assert update_of(BOTH[name](), rows) / scale == pytest.approx(case[name], abs=1e-9)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("count", [1, 2, 10, 40])
def test_no_task_is_opposed(name: str, count: int) -> None:
    random = np.random.default_rng(count)
    rows = random.choice([-1, 1], (count, 1)) * random.standard_normal(60)
    rows = (rows + random.standard_normal((count, 60))) * 10 ** random.uniform(-3, 3, (count, 1))
    update = update_of(BOTH[name](), rows)
    cosines = rows @ update / np.linalg.norm(rows, axis=1) / np.linalg.norm(update)
    assert cosines.min() >= -1e-10


def test_the_dual_projection_is_the_nearest_direction() -> None:
    rows = np.stack([FIRST, SECOND - 3 * FIRST, THIRD])
    update, mean = update_of(DualProj(), rows), rows.mean(axis=0)
    # A projection onto a cone is orthogonal to what it takes away, which no direction gains by.
    assert update @ (mean - update) == pytest.approx(0, abs=1e-9)
    gains = np.random.default_rng(0).exponential(size=(100, 3))
    inside = gains @ np.linalg.pinv(rows).T
    assert (inside @ (mean - update) <= 1e-9).all()


@pytest.mark.parametrize("name", BOTH)
def test_without_conflict_it_is_the_mean(name: str) -> None:
    rows = np.abs(np.random.default_rng(0).standard_normal((5, 30)))
    assert update_of(BOTH[name](), rows) == pytest.approx(rows.mean(axis=0), rel=1e-12)


def test_two_tasks_are_pcgrads() -> None:
    """Twice UPGrad is the sum of both gradients, each projected on the other's normal plane."""
    first, second = FIRST, SECOND - 2 * FIRST
    assert first @ second < 0
    expected = first - first @ second / (second @ second) * second
    expected += second - first @ second / (first @ first) * first
    found = update_of(UPGrad(reduction="sum"), [first, second])
    assert found == pytest.approx(expected, rel=1e-9)


def test_it_responds_to_gradients() -> None:
    one, other = update_of(UPGrad(), [FIRST, -SECOND]), update_of(UPGrad(), [FIRST, SECOND])
    assert np.linalg.norm(one - other) > 1
