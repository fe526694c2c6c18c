"""The aligned system: golden vectors, its principal components, and edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore_alignedmtl.balancer import AlignedMTL

Array = NDArray[np.float64]
FIRST, SECOND, THIRD = np.random.default_rng(5).standard_normal((3, 30))


def weights_of(balancer: AlignedMTL, rows: Any) -> Array:
    stacked = torch.from_numpy(np.stack(rows).astype(np.float64))
    return balancer.weights(stacked @ stacked.T).numpy()


def test_golden(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz")
    for case in golden("balancers.json")["cases"]:
        rows = arrays[case["matrix"]]
        # A condition of 1e12 leaves no more of them in a Gramian.
        tolerance = 2e-3 if case["variant"] == "neardup" else 1e-12
        for reduction in ("sum", "mean"):
            balancer = AlignedMTL(reduction=reduction)  # type: ignore[arg-type]
            found = weights_of(balancer, rows)
            expected = np.array(case["aligned"][f"alpha_{reduction}"])
            assert balancer.status == "converged"
            off = np.linalg.norm((found - expected) @ rows)
            assert off <= tolerance * np.linalg.norm(expected @ rows), case["id"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("count", [1, 2, 10, 40])
def test_components_get_equal_lengths(count: int, scale: float) -> None:
    """Against the singular value decomposition of the gradients, for each choice of s."""
    random = np.random.default_rng(count)
    rows = scale * random.standard_normal((count, 60)) * 10 ** random.uniform(-1, 1, (count, 1))
    left, lengths, right = np.linalg.svd(rows, full_matrices=False)
    for which, s in (
        ("min", lengths.min()),
        ("median", np.sort(lengths)[(count - 1) // 2]),
        ("rmse", np.sqrt((lengths**2).mean())),
    ):
        found = weights_of(AlignedMTL(scale=which), rows) @ rows  # type: ignore[arg-type]
        expected = s * (left @ right).sum(axis=0)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12 * s)
        assert np.linalg.norm(found) == pytest.approx(s * np.sqrt(count))


def test_orthogonal_gradients_of_all_scales_get_the_shortest_length() -> None:
    rows = np.diag([1e6, 1e-6, 1.0])
    assert weights_of(AlignedMTL(), rows) == pytest.approx([1e-12, 1.0, 1e-6], rel=1e-12)


def test_scales_keep_their_digits() -> None:
    """The weights of gradients with a factor of 1e12 between them, in both orders."""
    rows = np.stack([1e6 * FIRST, 1e-6 * SECOND])
    one, other = weights_of(AlignedMTL(), rows), weights_of(AlignedMTL(), rows[::-1])
    assert other[::-1] == pytest.approx(one, rel=1e-12)
    # To first order the short one keeps its part across the long one.
    unit = FIRST / np.linalg.norm(FIRST)
    across = SECOND - SECOND @ unit * unit
    s = 1e-6 * np.linalg.norm(across)
    expected = s * (unit + across / np.linalg.norm(across))
    assert one @ rows == pytest.approx(expected, abs=1e-9 * s)


def test_edges() -> None:
    balancer = AlignedMTL()
    with_zero = weights_of(balancer, [FIRST, 0 * FIRST, SECOND])
    assert balancer.status == "degenerate" and with_zero[1] == 0
    assert with_zero[[0, 2]] == pytest.approx(weights_of(balancer, [FIRST, SECOND]))
    assert balancer.status == "converged"
    assert weights_of(balancer, [FIRST, FIRST]) == pytest.approx([1, 1])  # their own component
    assert balancer.status == "degenerate"
    opposite = weights_of(balancer, [FIRST, -FIRST]) @ np.stack([FIRST, -FIRST])
    assert opposite == pytest.approx(np.zeros(30), abs=1e-12)
    assert not weights_of(balancer, np.zeros((2, 30))).any()
    third = weights_of(balancer, [FIRST, FIRST, SECOND])
    assert np.isfinite(third).all() and third[0] == pytest.approx(third[1])


def test_weights_respond_to_gradients() -> None:
    one = weights_of(AlignedMTL(), [FIRST, SECOND, THIRD])
    other = weights_of(AlignedMTL(), [FIRST, SECOND, 5 * THIRD])
    assert other[2] == pytest.approx(one[2] / 5, rel=0.2)


@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_short_components_are_found_as_long_ones_are(scale: Any) -> None:
    """Where a Gramian's own digits suffice and where they do not, one rule holds."""
    rotation, _ = np.linalg.qr(np.random.default_rng(7).standard_normal((4, 4)))
    balancer = AlignedMTL(scale=scale)
    for shortest in (0.04, 0.03, 1e-3, 1e-6):  # squared, around and far below 1e-3
        lengths = np.array([1.0, 0.7, 0.2, shortest])
        of_all = {"min": shortest, "median": 0.2, "rmse": np.sqrt((lengths**2).mean())}[scale]
        found = weights_of(balancer, rotation * lengths)
        expected = of_all * rotation @ (rotation.sum(axis=0) / lengths)
        assert found == pytest.approx(expected, rel=1e-13 / shortest**2, abs=0)
        assert balancer.status == "converged"
