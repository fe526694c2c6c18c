"""The mathematics that balancers share, against golden vectors, conditions and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtlcore.balancing import SolvedBalancer
from mtlcore.balancing.solvers import (
    Solution,
    as_gramian,
    bargain,
    cone_projection,
    equal_angles,
    min_norm_point,
    simplex_projection,
    unit_diagonal,
    without_zeros,
)


def some_rows(count, seed=0, *, conflict=False, spread=0.0):
    """Gradients, (count, 60): Gaussian, or for and against one direction; lengths 10^+-spread."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, 60))
    if conflict:
        rows = 0.5 * rows + random.choice([-1.0, 1.0], (count, 1)) * random.standard_normal(60)
    return rows * 10.0 ** random.uniform(-spread, spread, (count, 1))


FIRST, SECOND = some_rows(2, 5)
KINDS = {
    "gauss": {},
    "conflict": {"conflict": True},
    "spread": {"spread": 6.0},
    "both": {"conflict": True, "spread": 6.0},
}


@pytest.fixture(scope="module")
def cases(golden, golden_arrays):
    """Every golden case: rows, what it holds, and the directions by name."""
    arrays = golden_arrays("balancers.npz") | golden_arrays("golden_more.npz")
    return [
        (case, arrays[case["matrix"]], lambda name, case=case: arrays[f"{name}_{case['id']}"])
        for case in golden("golden_more.json")["cases"]
    ]


def near(found, expected, tolerance=1e-12):
    return np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


# Simplex


@pytest.mark.parametrize("seed", range(20))
def test_the_projection_onto_the_simplex_is_the_nearest_point(seed):
    random = np.random.default_rng(seed)
    point = random.standard_normal(7) * 10.0 ** random.uniform(-3, 3)
    nearest = simplex_projection(point)
    assert nearest.min() >= 0 and nearest.sum() == pytest.approx(1, rel=1e-12)
    # (p - x) . (y - x) <= 0 for every vertex y.
    away = point - nearest
    assert (away - away @ nearest <= 1e-9 * max(1.0, np.abs(point).max())).all()


def test_points_of_the_simplex_stay_and_shifts_do_not_matter():
    inside = np.array([0.2, 0.5, 0.3])
    assert simplex_projection(inside) == pytest.approx(inside, abs=1e-15)
    assert simplex_projection(inside + 1e6) == pytest.approx(inside, abs=1e-9)
    assert simplex_projection(np.array([-3.0])).tolist() == [1.0]
    assert simplex_projection(np.array([0.0, 5.0, 1.0])).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_the_shortest_combination_is_optimal(kind, count):
    rows = some_rows(count, count, **KINDS[kind])
    weights = min_norm_point(rows @ rows.T)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    shortest = weights @ rows
    # No vector reaches less far along the shortest combination than it does itself.
    along = rows @ shortest - shortest @ shortest
    scale = np.linalg.norm(rows, axis=1) * np.linalg.norm(shortest)
    assert (along >= -1e-9 * scale).all()


def test_golden_shortest_combinations(golden, golden_arrays):
    arrays = golden_arrays("balancers.npz")
    for case in golden("balancers.json")["cases"]:
        found = min_norm_point(np.array(case["gram"])) @ arrays[case["matrix"]]
        assert near(found, np.array(case["mgda"]["alpha"]) @ arrays[case["matrix"]], 1e-9)


# Cone


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 5, 10, 40])
def test_projections_onto_the_cone_are_the_nearest_points(kind, count):
    rows = some_rows(count, count, **KINDS[kind])
    targets = np.eye(count)[:8]
    found = cone_projection(rows @ rows.T, targets)
    assert found.status == "converged"
    lengths = np.linalg.norm(rows, axis=1)
    for weights, target in zip(found.weights, targets, strict=True):
        reached, wanted = weights @ rows, np.linalg.norm(target @ rows)
        cosines = rows @ reached / lengths / wanted
        multipliers = (weights - target) * lengths / wanted
        assert multipliers.min() >= 0 and cosines.min() >= -1e-11
        assert np.abs(multipliers * cosines).max() <= 1e-11  # none without a border


def test_golden_projections(cases):
    for case, rows, direction in cases:
        gramian, count = rows @ rows.T, case["K"]
        each = cone_projection(gramian, np.eye(count)).weights
        if case["variant"] != "neardup":  # there only the projection is well determined
            assert near(each, np.array(case["upgrad"]["projections"]), 1e-9), case["id"]
        assert near(each.mean(axis=0) @ rows, direction("upgrad_mean_dir")), case["id"]
        mean = cone_projection(gramian, np.full((1, count), 1 / count)).weights[0]
        assert near(mean @ rows, direction("dualproj_mean_dir")), case["id"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_cones_of_degenerate_gradients(scale):
    zero = np.zeros(60)
    for rows, expected in (
        ([FIRST, -FIRST], [zero, zero]),
        ([FIRST, -2 * FIRST], [zero, zero]),
        ([FIRST, FIRST], [FIRST, FIRST]),
        ([FIRST, zero], [FIRST, zero]),
        ([zero, zero], [zero, zero]),
        ([FIRST, FIRST, -FIRST, -FIRST], [zero] * 4),
    ):
        stacked = scale * np.stack(rows)
        found = cone_projection(stacked @ stacked.T, np.eye(len(rows)))
        assert found.status == "converged"
        assert found.weights @ stacked == pytest.approx(
            scale * np.stack(expected), abs=1e-7 * scale
        )


def test_a_direction_of_the_cone_is_its_own_projection():
    rows = np.abs(some_rows(6))
    targets = np.abs(some_rows(3, 1))[:, :6]
    assert np.array_equal(cone_projection(rows @ rows.T, targets).weights, targets)


# Bargains


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_bargains_solve_their_equation(kind, alpha):
    for count in (1, 2, 5, 10, 40):
        rows = some_rows(count, count, **KINDS[kind])
        gramian = rows @ rows.T
        found = bargain(gramian, alpha)
        weights = found.weights
        assert found.solved and weights.min() > 0
        gains, wanted = gramian @ weights, weights ** (-1 / alpha)
        rounding = 1e-14 * np.abs(gramian) @ weights
        assert (np.abs(gains - wanted) <= 1e-7 * wanted + rounding).all(), count
        assert found.norm == pytest.approx(np.linalg.norm(weights @ rows), rel=1e-9)
        assert np.array_equal(found.importance, weights)


def test_golden_bargains(cases):
    for case, rows, direction in cases:
        for alpha in (1, 2):
            found = bargain(rows @ rows.T, alpha)
            assert near(found.weights @ rows, direction(f"fairgrad{alpha}_dir")), case["id"]
            assert near(found.weights, np.array(case[f"fairgrad_{alpha}"]["weights"]), 1e-7)


def test_bargains_are_continuous_in_alpha():
    rows = some_rows(5, conflict=True)
    one, other = bargain(rows @ rows.T), bargain(rows @ rows.T, 1 + 1e-9)
    assert other.weights == pytest.approx(one.weights, rel=1e-7)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_bargains_without_a_solution_leave_the_cancelling_tasks_alone(alpha):
    for rows in ([FIRST, -FIRST], [FIRST, -2 * FIRST]):
        found = bargain(np.stack(rows) @ np.stack(rows).T, alpha)
        assert not found.solved and not found.weights.any() and found.norm == 0
    rows = np.stack([FIRST, -3 * FIRST, SECOND, 0 * FIRST])
    found = bargain(rows @ rows.T, alpha)
    update = found.weights @ rows
    assert not found.solved and found.weights[3] == 0
    assert rows[:2] @ update == pytest.approx([0, 0], abs=1e-9)
    assert (rows[2] @ update) ** alpha * found.weights[2] == pytest.approx(1, rel=1e-9)
    assert found.importance[0] == pytest.approx((FIRST @ FIRST) ** (-alpha / (1 + alpha)))


# Angles


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_equal_angles(count):
    cosines, norms = unit_diagonal((rows := some_rows(count, count, spread=6)) @ rows.T)
    found = equal_angles(cosines)
    assert found.status == "converged" and found.weights.sum() > 0
    direction = found.weights / norms @ rows
    assert rows @ direction / norms == pytest.approx(np.ones(count), rel=1e-9)


def test_golden_equal_angles(cases):
    for case, rows, direction in cases:
        cosines, norms = unit_diagonal(rows @ rows.T)
        b = equal_angles(cosines).weights
        found = b / norms * norms.sum() / b.sum() @ rows
        tolerance = 1e-3 if case["variant"] == "neardup" else 1e-12
        assert near(found, direction("config_dir"), tolerance), case["id"]


def test_equal_angles_of_dependent_vectors():
    ones = np.ones((3, 3))
    same = equal_angles(ones)
    assert same.status == "converged" and same.weights == pytest.approx([1 / 3] * 3)
    opposite = equal_angles(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert opposite.status == "degenerate" and opposite.weights == pytest.approx([0, 0], abs=1e-12)
    with_third = equal_angles(np.array([[1.0, -1, 0], [-1, 1, 0], [0, 0, 1]]))
    assert with_third.status == "degenerate"
    assert with_third.weights == pytest.approx([0, 0, 1], abs=1e-12)


# Gramians


def test_unit_diagonal():
    rows = np.stack([3 * FIRST, -FIRST, 0 * FIRST])
    cosines, norms = unit_diagonal(rows @ rows.T)
    assert cosines == pytest.approx(np.array([[1, -1, 0], [-1, 1, 0], [0, 0, 1.0]]))
    assert np.abs(cosines).max() <= 1
    assert norms == pytest.approx(np.linalg.norm(rows, axis=1))


def test_tasks_without_a_gradient_weigh_nothing():
    asked = []

    def solve(gramian):
        asked.append(gramian)
        return Solution(np.full(len(gramian), 5.0))

    rows = np.stack([FIRST, 0 * FIRST, SECOND])
    found = without_zeros(rows @ rows.T, solve)
    assert found.weights.tolist() == [5, 0, 5] and found.status == "degenerate"
    assert np.array_equal(asked[0], rows[::2] @ rows[::2].T)
    assert without_zeros(asked[0], solve).status == "converged"
    assert without_zeros(np.zeros((2, 2)), solve).weights.tolist() == [0, 0]


class Norms(SolvedBalancer):
    """Weights that are the lengths of the gradients."""

    def solve(self, gramian, context):
        return Solution(
            np.sqrt(gramian.diagonal()), "degenerate" if gramian[0, 0] == 0 else "converged"
        )


def test_a_balancer_of_a_solver_says_how_it_ended():
    balancer = Norms()
    assert balancer.status == "converged" and not balancer.affine
    weights = balancer.weights(torch.diag(torch.tensor([4.0, 9.0])))
    assert weights.tolist() == [2, 3] and weights.dtype == torch.float64
    balancer.weights(torch.zeros(2, 2))
    assert balancer.status == "degenerate"
    with pytest.raises(ValueError, match="not finite"):
        balancer.weights(torch.full((2, 2), torch.nan))
    assert balancer.status == "not finite"
    with pytest.raises(ValueError, match=r"\(K, K\)"):
        as_gramian(torch.ones(2, 3))
