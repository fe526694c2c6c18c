"""The shortest combination: against golden vectors, its conditions, and its edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore.balancing import BalancerContext
from mtlcore.errors import MtlError
from mtlcore_mgda.balancer import MGDA, Normalisation

Array = NDArray[np.float64]
RANDOM = np.random.default_rng(0)
FIRST, SECOND = RANDOM.standard_normal((2, 30))
ZERO = np.zeros(30)


def weights_of(balancer: MGDA, rows: Any, losses: Any = None) -> Array:
    names = tuple(f"task{i}" for i in range(len(rows)))
    context = None
    if losses is not None:
        known = dict(zip(names, losses, strict=True))
        context = BalancerContext(tasks=names, present=names, losses=known)
    stacked = torch.from_numpy(np.stack(rows))
    return balancer.weights(stacked @ stacked.T, context=context).numpy()


def test_golden(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz")
    for case in golden("balancers.json")["cases"]:
        rows = arrays[case["matrix"]]
        found = weights_of(MGDA(), rows) @ rows
        expected = np.array(case["mgda"]["alpha"]) @ rows
        assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected), case["id"]


@pytest.mark.parametrize("normalise", ["l2", "loss", "loss+"])
def test_golden_of_divided_gradients(
    normalise: Normalisation,
    golden: Callable[[str], Any],
    golden_arrays: Callable[[str], dict[str, Any]],
) -> None:
    arrays = golden_arrays("balancers.npz")
    for case in golden("golden_more.json")["cases"]:
        rows = arrays[case["matrix"]]
        found = weights_of(MGDA(normalise=normalise), rows, case["losses"]) @ rows
        expected = np.array(case["mgda_normalised"][normalise]["alpha"]) @ rows
        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected), case["id"]


def test_golden_degenerate(golden: Callable[[str], Any]) -> None:
    for case in golden("golden_more.json")["degenerate"]:
        rows = np.array(case["rows"])
        balancer = MGDA()
        assert weights_of(balancer, rows) @ rows == pytest.approx(case["mgda"], abs=1e-7)
        stops = not any(case["mgda"])
        assert (balancer.status == "degenerate") == stops, case["name"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("count", [1, 2, 10, 40])
def test_no_task_gets_worse(count: int, scale: float) -> None:
    random = np.random.default_rng(count)
    rows = scale * random.standard_normal((count, 60)) * 10 ** random.uniform(-2, 2, (count, 1))
    balancer = MGDA()
    weights = weights_of(balancer, rows)
    update = weights @ rows
    assert balancer.status == "converged"
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    assert (rows @ update >= (1 - 1e-9) * (update @ update)).all()


def test_unit_rows_are_what_l2_balances() -> None:
    rows = np.stack([1e-3 * FIRST, 1e3 * SECOND])
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = weights_of(MGDA(normalise="l2"), rows)
    assert found == pytest.approx(weights_of(MGDA(), units), rel=1e-9)


def test_a_task_without_a_gradient_stops_all() -> None:
    balancer = MGDA()
    assert weights_of(balancer, [FIRST, ZERO, SECOND]).tolist() == [0, 1, 0]
    assert balancer.status == "degenerate"


def test_weights_respond_to_gradients_at_fixed_losses() -> None:
    balancer = MGDA(normalise="loss")
    one = weights_of(balancer, [FIRST, SECOND], [1.0, 1.0])
    other = weights_of(balancer, [FIRST, 0.5 * SECOND], [1.0, 1.0])
    assert np.abs(one - other).max() > 0.01


def test_heads_and_scope() -> None:
    both = weights_of(MGDA(weigh_heads=True), [FIRST, SECOND])
    assert both.shape == (2, 2) and np.array_equal(both[0], both[1])
    assert MGDA().scope == "shared" and MGDA(scope="features").scope == "features"


def test_losses_that_nothing_can_be_divided_by() -> None:
    with pytest.raises(MtlError, match="task1 is not above 0"):
        weights_of(MGDA(normalise="loss"), [FIRST, SECOND], [1.0, 0.0])
    balancer = MGDA(normalise="loss+")
    found = weights_of(balancer, [FIRST, SECOND])
    assert balancer.status == "degenerate"
    assert np.array_equal(found, weights_of(MGDA(normalise="l2"), [FIRST, SECOND]))
