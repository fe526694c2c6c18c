"""Equal cosines: golden vectors, the definition on gradients, identities, and edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore_config.balancer import ConFIG

Array = NDArray[np.float64]
FIRST, SECOND = np.random.default_rng(5).standard_normal((2, 30))


def weights_of(balancer: ConFIG, rows: Any) -> Array:
    stacked = torch.from_numpy(np.stack(rows).astype(np.float64))
    return balancer.weights(stacked @ stacked.T).numpy()


def published(rows: Array) -> Array:
    """The paper's equations, on the gradients."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    along = np.linalg.pinv(units) @ np.ones(len(rows))
    along /= np.linalg.norm(along)
    return np.asarray((rows @ along).sum() * along)


def test_golden(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz") | golden_arrays("golden_more.npz")
    for case in golden("golden_more.json")["cases"]:
        rows, expected = arrays[case["matrix"]], arrays[f"config_dir_{case['id']}"]
        balancer = ConFIG()
        found = weights_of(balancer, rows) @ rows
        # A condition of 1e12 leaves no more of them in a Gramian.
        tolerance = 1e-3 if case["variant"] == "neardup" else 1e-12
        assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected), case["id"]
        assert balancer.status == "converged"


def test_golden_degenerate(golden: Callable[[str], Any]) -> None:
    for case in golden("golden_more.json")["degenerate"]:
        rows = np.array(case["rows"])
        keys = ("config", "config_by_pseudo_inverse", "config_without_it")
        (expected,) = (case[key] for key in keys if key in case)
        balancer = ConFIG()
        assert weights_of(balancer, rows) @ rows == pytest.approx(expected, abs=1e-9)
        solved = case["name"] in ("one task", "equal rows")
        assert (balancer.status == "converged") == solved, case["name"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("count", [1, 2, 10, 40])
def test_it_is_the_papers_formula(count: int, scale: float) -> None:
    random = np.random.default_rng(count)
    rows = scale * random.standard_normal((count, 60)) * 10 ** random.uniform(-2, 2, (count, 1))
    found = weights_of(ConFIG(), rows) @ rows
    expected = published(rows)
    assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected)
    cosines = rows @ found / np.linalg.norm(rows, axis=1) / np.linalg.norm(found)
    assert cosines == pytest.approx(np.full(count, cosines[0])) and cosines[0] > 0


def test_it_is_parallel_to_equal_projections(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    """IMTL-G's direction, up to the sign; see the golden vectors."""
    arrays = golden_arrays("balancers.npz")
    for case in golden("balancers.json")["cases"]:
        rows, other = arrays[case["matrix"]], arrays[f"imtlg_dir_{case['id']}"]
        found = weights_of(ConFIG(), rows) @ rows
        cosine = found @ other / np.linalg.norm(found) / np.linalg.norm(other)
        assert abs(cosine) == pytest.approx(1, abs=1e-6), case["id"]


def test_some_opposite_gradients_leave_the_rest() -> None:
    balancer, rows = ConFIG(), np.stack([FIRST, -FIRST, SECOND])
    found = weights_of(balancer, rows) @ rows
    assert balancer.status == "degenerate"
    expected = published(rows)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_weights_respond_to_gradients() -> None:
    assert weights_of(ConFIG(), [[1, 0], [0, 3]]) == pytest.approx([2, 2 / 3])
    assert weights_of(ConFIG(), [[1, 0], [0, 1]]) == pytest.approx([1, 1])
