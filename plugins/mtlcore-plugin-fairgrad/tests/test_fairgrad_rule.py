"""Alpha-fair gains: golden vectors, the equation, identities, and edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore_fairgrad.balancer import FairGrad

Array = NDArray[np.float64]
FIRST, SECOND = np.random.default_rng(5).standard_normal((2, 30))


def weights_of(balancer: FairGrad, rows: Any) -> Array:
    stacked = torch.from_numpy(np.stack(rows).astype(np.float64))
    return balancer.weights(stacked @ stacked.T).numpy()


def some_rows(count: int, scale: float = 1.0, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    return scale * random.standard_normal((count, 60)) * 10 ** random.uniform(-1, 1, (count, 1))


def test_golden(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz") | golden_arrays("golden_more.npz")
    for case in golden("golden_more.json")["cases"]:
        rows = arrays[case["matrix"]]
        for alpha in (1, 2):
            balancer = FairGrad(alpha=alpha)
            found = weights_of(balancer, rows) @ rows
            expected = arrays[f"fairgrad{alpha}_dir_{case['id']}"]
            assert balancer.status == "converged"
            off = np.linalg.norm(found - expected)
            assert off <= 1e-12 * np.linalg.norm(expected), case["id"]


def test_golden_degenerate(golden: Callable[[str], Any]) -> None:
    for case in golden("golden_more.json")["degenerate"]:
        rows = np.array(case["rows"])
        for alpha in (1, 2):
            expected = case.get(f"fairgrad_{alpha}")
            balancer = FairGrad(alpha=alpha)
            found = weights_of(balancer, rows) @ rows
            without = case.get(f"fairgrad_{alpha}_without_it")
            if expected is not None:
                assert found == pytest.approx(expected) and balancer.status == "converged"
            elif f"fairgrad_{alpha}" in case:
                assert balancer.status == "degenerate"
                assert found == pytest.approx(without or [0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 2.0, 10.0])
def test_the_equation_holds(alpha: float, scale: float) -> None:
    for count in (1, 2, 10, 40):
        rows = some_rows(count, scale, count)
        balancer = FairGrad(alpha=alpha)
        weights = weights_of(balancer, rows)
        assert balancer.status == "converged" and weights.min() > 0
        gains, wanted = rows @ (weights @ rows), weights ** (-1 / alpha)
        # A gain that is small beside its terms is known as well as these are.
        rounding = 1e-14 * np.abs(rows @ rows.T) @ weights
        assert (np.abs(gains - wanted) <= 1e-8 * wanted + rounding).all()
        norm = np.sqrt((weights ** (1 - 1 / alpha)).sum())
        assert np.linalg.norm(weights @ rows) == pytest.approx(norm)


def test_no_other_update_is_fairer() -> None:
    """The sum of utilities at this length is the largest of all directions tried."""
    rows = some_rows(3)
    for alpha in (0.5, 2.0):
        update = weights_of(FairGrad(alpha=alpha), rows) @ rows
        random = np.random.default_rng(0)
        others = update + 0.1 * np.linalg.norm(update) * random.standard_normal((200, 60)) / 8
        others *= np.linalg.norm(update) / np.linalg.norm(others, axis=1, keepdims=True)
        best = utility(rows @ update, alpha)
        gains = rows @ others.T
        assert all(utility(g, alpha) < best for g in gains.T if (g > 0).all())


def utility(gains: Array, alpha: float) -> float:
    return float((gains ** (1 - alpha) / (1 - alpha)).sum())


def test_alpha_1_is_nash_bargaining() -> None:
    """Each task's weight times its gain is 1, and the update has the norm sqrt(K)."""
    rows = some_rows(5)
    weights = weights_of(FairGrad(alpha=1.0), rows)
    assert weights * (rows @ (weights @ rows)) == pytest.approx(np.ones(5), rel=1e-12)
    assert np.linalg.norm(weights @ rows) == pytest.approx(5**0.5)


def test_scaling_all_losses() -> None:
    rows = some_rows(4)
    one, other = weights_of(FairGrad(), rows) @ rows, weights_of(FairGrad(), 8 * rows) @ (8 * rows)
    assert other == pytest.approx(one / 2, rel=1e-9)  # 8^(-1/3)


def test_rescaling_and_clipping() -> None:
    rows = some_rows(4)
    plain = weights_of(FairGrad(), rows)
    assert weights_of(FairGrad(rescale=True), rows) == pytest.approx(4 * plain)
    norm = float(np.linalg.norm(plain @ rows))
    for limit, expected in ((0.5 * norm, 0.5 * norm), (2 * norm, 2 * norm), (8 * norm, 4 * norm)):
        clipped = weights_of(FairGrad(rescale=True, max_norm=limit), rows) @ rows
        assert np.linalg.norm(clipped) == pytest.approx(expected)


def test_the_others_share_what_cancelling_tasks_leave() -> None:
    balancer, rows = FairGrad(), np.stack([FIRST, -2 * FIRST, SECOND, 0 * FIRST])
    update = weights_of(balancer, rows) @ rows
    assert balancer.status == "degenerate"
    assert FIRST @ update == pytest.approx(0, abs=1e-9)
    assert SECOND @ update > 0
