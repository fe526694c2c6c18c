"""The paper's rule: against golden vectors, against gradients, and at its edges."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore_pcgrad.balancer import PCGrad, project

Array = NDArray[np.float64]
Orders = NDArray[np.int64]


@pytest.fixture(scope="module")
def cases(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> list[dict[str, Any]]:
    arrays = golden_arrays("balancers.npz")
    return [
        case | {"rows": arrays[case["matrix"]], "sum": arrays[f"pcgrad_sum_{case['id']}"]}
        for case in golden("balancers.json")["cases"]
    ]


def some_rows(count: int, seed: int = 0, conflicting: bool = True) -> Array:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, 30))
    if conflicting:
        rows = 0.5 * rows + random.choice([-1, 1], (count, 1)) * random.standard_normal(30)
    return rows * 10 ** random.uniform(-2, 2, (count, 1))


def some_orders(count: int, seed: int = 0) -> Orders:
    random = np.random.default_rng(seed)
    return np.array([random.permutation([j for j in range(count) if j != i]) for i in range(count)])


def projected(gramian: Array, orders: Orders) -> Array:
    return np.array(project(gramian.tolist(), orders.tolist()))


def surgery(rows: Array, orders: Orders) -> Array:
    """The paper's algorithm as it is printed, on gradients: (K, P) -> projected (K, P)."""
    left = rows.copy()
    for i, order in enumerate(orders):
        for j in order:
            inner = left[i] @ rows[j]
            if inner < 0:
                left[i] -= inner / (rows[j] @ rows[j]) * rows[j]
    return left


def weights_of(balancer: PCGrad, rows: Array) -> Array:
    return balancer.weights(torch.from_numpy(rows @ rows.T)).numpy()


def close(one: Any, other: Any, tolerance: float = 1e-12) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return bool(np.abs(one - other).max() <= tolerance * np.abs(other).max())


# Golden vectors


def test_recorded_orders(cases: list[dict[str, Any]]) -> None:
    assert sum(case["pcgrad"]["n_projections"] for case in cases) > 100
    for case in cases:
        found = projected(np.array(case["gram"]), np.array(case["orders"]))
        assert close(found, case["pcgrad"]["coef"]), case["id"]
        assert close(found.sum(axis=0), case["pcgrad"]["weights_sum"]), case["id"]
        assert close(found.sum(axis=0) / case["K"], case["pcgrad"]["weights_mean"]), case["id"]
        assert close(found.sum(axis=0) @ case["rows"], case["sum"]), case["id"]


@pytest.mark.parametrize("order", ["random", "fixed"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_two_tasks_have_but_one_order(
    cases: list[dict[str, Any]], reduction: Any, order: Any
) -> None:
    balancer = PCGrad(reduction=reduction, order=order)
    for case in cases:
        if case["K"] == 2:
            found = balancer.weights(torch.tensor(case["gram"], dtype=torch.float64))
            assert close(found, case["pcgrad"][f"weights_{reduction}"]), case["id"]


def test_average_over_all_orders(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        tasks = range(case["K"])
        each = [list(permutations([j for j in tasks if j != i])) for i in tasks]
        found = [
            projected(np.array(case["gram"]), np.array(orders))
            for orders in zip(*each, strict=True)
        ]
        mean = np.mean(found, axis=0)
        assert close(mean, case["pcgrad"]["all_orders_coef"]), case["id"]
        assert close(mean.sum(axis=0), case["pcgrad"]["all_orders_weights_sum"]), case["id"]


def test_random_orders_average_to_that(cases: list[dict[str, Any]]) -> None:
    """With 1500 draws; within four of its own standard errors."""
    (case,) = (case for case in cases if case["id"] == "conflict_K5_P1000")
    balancer = PCGrad()
    balancer.generator = torch.Generator().manual_seed(0)
    drawn = np.array([weights_of(balancer, case["rows"]) for _ in range(1500)])
    errors = np.abs(drawn.mean(axis=0) - case["pcgrad"]["all_orders_weights_sum"])
    assert (drawn.std(axis=0) > 1e-3).any()
    assert (errors <= 4 * drawn.std(axis=0) / 1500**0.5 + 1e-12).all()


# The rule


@pytest.mark.parametrize("count", [2, 3, 10, 40])
@pytest.mark.parametrize("conflicting", [True, False])
def test_gramian_and_gradients_agree(count: int, conflicting: bool) -> None:
    rows, orders = some_rows(count, count, conflicting), some_orders(count)
    expected = surgery(rows, orders)
    found = projected(rows @ rows.T, orders) @ rows
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    assert close(found / lengths, expected / lengths, 1e-10)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fixed_order_is_as_listed(count: int) -> None:
    rows = some_rows(count, 7)
    orders = np.array([[j for j in range(count) if j != i] for i in range(count)], dtype=int)
    expected = projected(rows @ rows.T, orders.reshape(count, count - 1)).sum(axis=0)
    for _ in range(2):
        assert np.array_equal(weights_of(PCGrad(order="fixed"), rows), expected)
    mean = weights_of(PCGrad(order="fixed", reduction="mean"), rows)
    assert np.array_equal(mean, expected / count)


def test_permuted_tasks() -> None:
    rows, orders, order = some_rows(6), some_orders(6), np.array([3, 0, 5, 1, 4, 2])
    place = np.argsort(order)
    there = projected(rows[order] @ rows[order].T, place[orders[order]])
    assert close(there, projected(rows @ rows.T, orders)[np.ix_(order, order)])


def test_scaled_tasks() -> None:
    """With g_i times c_i, what is left of g_i is c_i times as long: C_ij becomes C_ij c_i / c_j."""
    rows, orders = some_rows(6), some_orders(6)
    scales = 10.0 ** np.array([-6, 3, 0, 6, -2, 1])
    scaled = scales[:, None] * rows
    there = projected(scaled @ scaled.T, orders) * scales / scales[:, None]
    assert close(there, projected(rows @ rows.T, orders))


def test_no_conflict_is_the_sum() -> None:
    rows = np.abs(some_rows(5))
    assert weights_of(PCGrad(), rows).tolist() == [1.0] * 5
    assert weights_of(PCGrad(reduction="mean"), rows).tolist() == [0.2] * 5


@pytest.mark.parametrize("order", ["random", "fixed"])
def test_edges(order: Any) -> None:
    balancer = PCGrad(order=order)
    first, second, zero = *some_rows(2, conflicting=False), np.zeros(30)
    assert weights_of(balancer, np.stack([first])).tolist() == [1.0]
    assert weights_of(balancer, np.stack([zero])).tolist() == [1.0]
    assert weights_of(balancer, np.stack([zero, zero])).tolist() == [1.0, 1.0]
    # Opposite: each loses all that it has.
    found = weights_of(balancer, np.stack([first, -3 * first]))
    assert found == pytest.approx([1 + 3, 1 + 1 / 3], rel=1e-12)
    assert found @ np.stack([first, -3 * first]) == pytest.approx(0, abs=1e-12)
    # Multiples of one: 2 - 1/2 is not what is left, as projecting knows no lengths.
    rows = np.stack([first, 2 * first, -0.5 * first])
    assert weights_of(balancer, rows) @ rows == pytest.approx(0, abs=1e-12)
    # Twice the same conflict is removed once.
    rows = np.stack([first, second, second])
    conflict = rows if first @ second < 0 else rows * np.array([[1], [-1], [-1]])
    expected = surgery(conflict, np.array([[1, 2], [0, 2], [0, 1]])).sum(axis=0)
    assert weights_of(balancer, conflict) @ conflict == pytest.approx(expected, rel=1e-12)


def test_a_zero_gradient_is_nobodys_conflict() -> None:
    rows = some_rows(4)
    rows[2] = 0
    others = [0, 1, 3]
    found = weights_of(PCGrad(order="fixed"), rows)
    alone = weights_of(PCGrad(order="fixed"), rows[others])
    assert found[2] == 1
    assert np.array_equal(found[others], alone)


def test_forty_tasks() -> None:
    rows = some_rows(40)
    orders = np.array([[j for j in range(40) if j != i] for i in range(40)])
    expected = surgery(rows, orders).sum(axis=0)
    assert close(weights_of(PCGrad(order="fixed"), rows) @ rows, expected, 1e-9)


# Randomness


def draws(balancer: PCGrad, context: BalancerContext | None = None, number: int = 6) -> list[Any]:
    rows = some_rows(6)
    gramian = torch.from_numpy(rows @ rows.T)
    return [balancer.weights(gramian, context).tolist() for _ in range(number)]


def test_every_call_draws_anew() -> None:
    torch.manual_seed(0)
    one, other = draws(PCGrad()), draws(PCGrad())
    assert len({tuple(weights) for weights in one + other}) > 6
    assert one != other


def test_sources_of_randomness() -> None:
    torch.manual_seed(3)
    from_global = draws(PCGrad())
    balancer = PCGrad()
    balancer.generator = torch.Generator().manual_seed(3)
    assert draws(balancer) == from_global
    balancer.generator.manual_seed(4)
    before = balancer.generator.get_state()
    context = BalancerContext(tasks=(), generator=torch.Generator().manual_seed(3))
    assert draws(balancer, context) == from_global
    assert torch.equal(balancer.generator.get_state(), before)


def test_all_orders_are_equally_likely() -> None:
    balancer, generator = PCGrad(), torch.Generator().manual_seed(0)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(2400):
        for task, order in enumerate(balancer._orders(4, generator)):
            counts[task, *order] = counts.get((task, *order), 0) + 1
    expected = {(i, *o) for i, o in product(range(4), permutations(range(4), 3)) if i not in o}
    assert set(counts) == expected
    # 400 expected for each of 24; chi-square with 20 degrees of freedom, far in the tail.
    assert sum((n - 400) ** 2 / 400 for n in counts.values()) < 45


# Input


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_other_precisions(kind: torch.dtype) -> None:
    rows = some_rows(4)
    gramian = torch.from_numpy(rows @ rows.T).to(kind)
    found = PCGrad(order="fixed").weights(gramian)
    assert found.dtype == torch.float64
    assert torch.equal(found, PCGrad(order="fixed").weights(gramian.double()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        PCGrad().weights(torch.tensor([[1.0, bad], [bad, 1.0]]))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 2)])
def test_not_a_gramian(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(K, K\)"):
        PCGrad().weights(torch.ones(shape))


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match=r"balancer\.reduction"):
        PCGrad(reduction="avg")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"balancer\.order"):
        PCGrad(order="shuffled")  # type: ignore[arg-type]


def test_has_no_state() -> None:
    assert not PCGrad().state_dict()
    assert not PCGrad.affine
