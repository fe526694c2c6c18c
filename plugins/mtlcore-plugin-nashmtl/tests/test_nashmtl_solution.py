"""The weights solve `M a = 1 / a`: golden vectors, random Gramians, equivariance, settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mtlcore.balancing.solvers import Array, bargain
from mtlcore.errors import UsageError
from mtlcore_nashmtl.balancer import NashMTL

Golden = Callable[[str], Any]


@pytest.fixture
def cases(golden: Golden) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = golden("balancers.json")["cases"]
    return found


def solve(balancer: NashMTL, gramian: Array) -> Array:
    return balancer.weights(torch.from_numpy(gramian)).numpy()


def residual(weights: Array, gramian: Array) -> float:
    return float(np.abs(weights * (gramian @ weights) - 1).max())


def some_rows(random: np.random.Generator, count: int, conflicting: bool) -> Array:
    """Independent rows, or rows on two sides of one direction; norms from 1e-6 to 1e6."""
    size = int(random.integers(2 * count, 6 * count))
    rows = random.standard_normal((count, size))
    if conflicting:
        rows = 0.5 * rows + random.choice([-1, 1], (count, 1)) * random.standard_normal(size)
    return rows * 10 ** random.uniform(-6, 6, (count, 1))


# Solutions


def test_golden_weights_and_directions(cases: list[dict[str, Any]], golden_arrays: Golden) -> None:
    balancer, arrays = NashMTL(), golden_arrays("balancers.npz")
    for case in cases:
        gramian, rows = np.array(case["gram"]), arrays[case["matrix"]]
        weights = solve(balancer, gramian)
        assert balancer.status == "converged", case["id"]
        assert residual(weights, gramian) <= 1e-10, case["id"]
        assert weights == pytest.approx(case["nash"]["alpha"], rel=1e-10), case["id"]
        direction, expected = weights @ rows, arrays[f"nash_dir_{case['id']}"]
        error = np.linalg.norm(direction - expected) / np.linalg.norm(expected)
        assert error <= 1e-10, case["id"]
        assert direction @ direction == pytest.approx(case["K"], rel=1e-10), case["id"]


def test_it_is_fairgrad_with_alpha_1(golden: Golden, golden_arrays: Golden) -> None:
    arrays, more = golden_arrays("balancers.npz"), golden_arrays("golden_more.npz")
    for case in golden("golden_more.json")["cases"]:
        rows = arrays[case["matrix"]]
        weights, fair = solve(NashMTL(), rows @ rows.T), case["fairgrad_1"]
        assert weights == pytest.approx(fair["weights"], rel=1e-9), case["id"]
        direction, expected = weights @ rows, more[f"fairgrad1_dir_{case['id']}"]
        error = np.linalg.norm(direction - expected) / np.linalg.norm(expected)
        assert error <= 1e-10, case["id"]


def test_degenerate_inputs(golden: Golden) -> None:
    """Where no weights solve the equation, the status says so; a zero row has no say."""
    solved = []
    for case in golden("golden_more.json")["degenerate"]:
        rows, balancer = np.array(case["rows"]), NashMTL()
        update = solve(balancer, rows @ rows.T) @ rows
        expected = case["fairgrad_1"]
        assert balancer.status == ("degenerate" if expected is None else "converged"), case["name"]
        # Tasks that cancel leave an update orthogonal to both.
        expected = expected or case.get("fairgrad_1_without_it", [0.0, 0.0])
        assert update == pytest.approx(expected, rel=1e-12, abs=1e-12), case["name"]
        solved.append(balancer.status)
    assert solved.count("converged") == 2 and solved.count("degenerate") == 3


def test_golden_weights_of_the_normalised_gramian(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        gramian = np.array(case["gram"]) / case["gram_fro"]
        expected = case["nash"]["alpha_for_fro_normalised_gram"]
        assert solve(NashMTL(), gramian) == pytest.approx(expected, rel=1e-10), case["id"]


def check_random(number: int, seed: int) -> None:
    random, balancer = np.random.default_rng(seed), NashMTL()
    for turn in range(number):
        rows = some_rows(random, int(random.integers(2, 11)), conflicting=turn % 2 == 1)
        gramian = rows @ rows.T
        weights = solve(balancer, gramian)
        assert balancer.status == "converged", turn
        assert (weights > 0).all(), turn
        assert residual(weights, gramian) <= 1e-10, turn


def test_random_gramians() -> None:
    check_random(600, seed=0)


@pytest.mark.slow
def test_ten_thousand_random_gramians() -> None:
    check_random(10_000, seed=1)


def test_two_tasks_in_closed_form() -> None:
    """With cosine c both unit gradients weigh `1 / sqrt(1 + c)`."""
    for cosine in (-0.999, -0.5, 0.0, 0.5, 1.0):
        gramian = np.array([[4.0, 20 * cosine], [20 * cosine, 100.0]])
        expected = np.array([1 / 2, 1 / 10]) / (1 + cosine) ** 0.5
        assert solve(NashMTL(), gramian) == pytest.approx(expected, rel=1e-12)


def test_orthogonal_tasks_are_normalised() -> None:
    norms = np.array([1e-6, 0.3, 1.0, 1e6])
    assert solve(NashMTL(), np.diag(norms**2)) == pytest.approx(1 / norms, rel=1e-14)


def test_one_task() -> None:
    assert solve(NashMTL(), np.array([[25.0]])) == pytest.approx([0.2], rel=1e-15)


@pytest.mark.parametrize("conflicting", [True, False])
def test_forty_tasks(conflicting: bool) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        rows = some_rows(random, 40, conflicting)
        assert residual(solve(NashMTL(), rows @ rows.T), rows @ rows.T) <= 1e-10


def test_sharply_conflicting_tasks() -> None:
    """Angles to opposite of 0.1 to 0.001: rounding counts `1 / angle^2` times."""
    random = np.random.default_rng(0)
    for angle in (0.1, 0.01, 0.001):
        for count in (2, 5, 10):
            sides = random.permutation(np.resize([-1.0, 1.0], count))
            common = np.eye(1, 200)[0]
            rows = sides[:, None] * common + angle * random.standard_normal((count, 200)) / 14
            balancer = NashMTL()
            weights = solve(balancer, rows @ rows.T)
            assert balancer.status == "converged"
            assert residual(weights, rows @ rows.T) <= 1e-15 * count / angle**2 + 1e-13


# What does not matter


def test_scaling_a_task_divides_its_weight() -> None:
    random = np.random.default_rng(0)
    rows = some_rows(random, 6, conflicting=True)
    scales = 10.0 ** np.array([-8, 3, 0, 8, -2, 1])
    scaled = scales[:, None] * rows
    one, other = solve(NashMTL(), rows @ rows.T), solve(NashMTL(), scaled @ scaled.T)
    assert other * scales == pytest.approx(one, rel=1e-10)


def test_permuting_tasks_permutes_weights() -> None:
    rows, order = some_rows(np.random.default_rng(0), 6, conflicting=True), [3, 0, 5, 1, 4, 2]
    one, other = (solve(NashMTL(), r @ r.T) for r in (rows, rows[order]))
    assert other == pytest.approx(one[order], rel=1e-12)


def test_a_duplicate_is_a_task_as_any() -> None:
    """Its Gramian is singular, its solution is not; and almost the same row gives almost that."""
    rows = np.random.default_rng(0).standard_normal((4, 20))
    twice = np.concatenate([rows, rows[:1]])
    balancer = NashMTL()
    weights = solve(balancer, twice @ twice.T)
    assert balancer.status == "converged"
    assert residual(weights, twice @ twice.T) <= 1e-12
    assert weights[0] == pytest.approx(weights[4], rel=1e-12)
    near = np.concatenate([rows, rows[:1] * (1 + 1e-9)])
    assert solve(balancer, near @ near.T) == pytest.approx(weights, rel=1e-8)


def test_agreeing_multiples_of_one_gradient() -> None:
    row = np.random.default_rng(0).standard_normal(20)
    factors = np.array([1.0, 2.0, 1e-3, 1e4])
    balancer = NashMTL()
    weights = solve(balancer, np.outer(factors, factors) * (row @ row))
    assert balancer.status == "converged"
    assert weights == pytest.approx(0.5 / (factors * np.linalg.norm(row)), rel=1e-12)


def test_earlier_answers_do_not_matter() -> None:
    random, used = np.random.default_rng(0), NashMTL(weigh_heads=True)
    for count in (3, 3, 7, 2, 3):
        rows = some_rows(random, count, conflicting=True)
        fresh = NashMTL(weigh_heads=True)
        assert np.array_equal(solve(used, rows @ rows.T), solve(fresh, rows @ rows.T))
    assert not used.state_dict()
    assert not NashMTL.affine


def test_no_randomness() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    solve(NashMTL(), np.eye(3))
    assert torch.equal(before, torch.get_rng_state())


# Settings


def test_clipping() -> None:
    rows = some_rows(np.random.default_rng(0), 5, conflicting=True)
    gramian = rows @ rows.T
    free = solve(NashMTL(), gramian)
    for norm in (0.25, 1.0):
        clipped = solve(NashMTL(max_norm=norm), gramian)
        assert clipped @ gramian @ clipped == pytest.approx(norm**2, rel=1e-10)
        assert clipped / free == pytest.approx(np.full(5, norm / 5**0.5), rel=1e-10)
    # The update's norm is sqrt(5): nothing to shrink.
    assert np.array_equal(solve(NashMTL(max_norm=2.3), gramian), free)


def test_heads_are_weighed_without_clipping() -> None:
    rows = some_rows(np.random.default_rng(0), 5, conflicting=True)
    gramian = rows @ rows.T
    free = solve(NashMTL(), gramian)
    assert free.shape == (5,)
    shared, heads = solve(NashMTL(max_norm=1.0, weigh_heads=True), gramian)
    assert np.array_equal(heads, free)
    assert np.array_equal(shared, solve(NashMTL(max_norm=1.0), gramian))
    both = solve(NashMTL(weigh_heads=True), gramian)
    assert np.array_equal(both, np.stack([free, free]))


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_max_norm_is_checked(norm: float) -> None:
    with pytest.raises(UsageError, match=r"balancer\.max_norm"):
        NashMTL(max_norm=norm)


# Input


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_other_precisions(kind: torch.dtype) -> None:
    random = np.random.default_rng(0)
    gramian = torch.from_numpy(np.cov(random.standard_normal((4, 50)))).to(kind)
    balancer = NashMTL()
    found = balancer.weights(gramian)
    assert balancer.status == "converged"
    assert found.dtype == torch.float64
    assert torch.equal(found, balancer.weights(gramian.double()))
    assert residual(found.numpy(), gramian.double().numpy()) <= 1e-10


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad: float) -> None:
    balancer = NashMTL()
    with pytest.raises(ValueError, match="not finite"):
        balancer.weights(torch.tensor([[1.0, bad], [bad, 1.0]]))
    assert balancer.status == "not finite"
    balancer.weights(torch.eye(2))
    assert balancer.status == "converged"


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 2)])
def test_not_a_gramian(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(K, K\)"):
        NashMTL().weights(torch.ones(shape))


def test_the_norm_is_the_updates() -> None:
    rows = some_rows(np.random.default_rng(0), 5, conflicting=True)
    agreed = bargain(rows @ rows.T)
    assert agreed.solved
    assert agreed.norm == pytest.approx(np.linalg.norm(agreed.weights @ rows), rel=1e-10)
    assert agreed.norm == pytest.approx(5**0.5, rel=1e-12)
