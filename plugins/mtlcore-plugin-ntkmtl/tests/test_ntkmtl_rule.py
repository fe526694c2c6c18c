"""Weights by eigenvalues of kernels: golden vectors, several batches, and edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore_ntkmtl.balancer import NTKMTL

Array = NDArray[np.float64]


def weights_of(balancer: NTKMTL, batches: Sequence[Array]) -> Array:
    names = tuple(f"task{i}" for i in range(len(batches[0])))
    each = torch.from_numpy(np.stack(batches).astype(np.float64))
    gramians = torch.einsum("akp,blp->abkl", each, each) if len(batches) > 1 else None
    context = BalancerContext(tasks=names, present=names, gramians=gramians)
    mean = each.mean(0)
    return np.asarray(balancer.weights(mean @ mean.T, context=context).numpy())


def test_golden(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz")
    for case in golden("golden_more.json")["cases"]:
        rows, expected = arrays[case["matrix"]], case["ntkmtl"]
        balancer = NTKMTL(exponent=expected["exponent"])
        found = weights_of(balancer, [rows])
        assert found == pytest.approx(expected["weights_sum"], rel=1e-12), case["id"]
        assert balancer.status == "converged"
        times = weights_of(NTKMTL(exponent=expected["exponent"], rescale=True), [rows])
        assert times == pytest.approx(case["K"] * found)


def test_golden_edges(golden: Callable[[str], Any]) -> None:
    for case in golden("golden_more.json")["degenerate"]:
        rows, balancer = np.array(case["rows"], dtype=np.float64), NTKMTL()
        found = weights_of(balancer, [rows])
        if case["ntkmtl"] is None:
            assert balancer.status == "degenerate" and np.isfinite(found).all()
            assert found.tolist() == [0.0, 1.0]
        else:
            assert found @ rows == pytest.approx(case["ntkmtl"], abs=1e-12), case["name"]
            assert balancer.status == "converged"


def test_one_batch_gives_unit_gradients() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 20)) * [[1e-3], [1], [5], [1e3]]
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(0)
    found = weights_of(NTKMTL(), [rows]) @ rows
    assert found == pytest.approx(units * np.linalg.norm(rows))
    clipped = weights_of(NTKMTL(rescale=True, max_norm=1.0), [rows]) @ rows
    assert clipped == pytest.approx(units / np.linalg.norm(units))
    small = weights_of(NTKMTL(max_norm=1e9), [rows]) @ rows
    assert small == pytest.approx(found)


@pytest.mark.parametrize("count", [2, 3])
def test_equal_batches_are_as_one(count: int) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 20)) * [[1], [3], [9]]
    expected = weights_of(NTKMTL(exponent=0.7), [rows])
    found = weights_of(NTKMTL(exponent=0.7, batches=count), [rows] * count)
    assert found == pytest.approx(expected)


def test_the_largest_eigenvalue_of_the_kernel_decides() -> None:
    """A task whose batches pull apart learns as fast as the longest of them."""
    one = np.array([[2.0, 0, 0, 0], [0, 0, 1.0, 0]])
    other = np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0]])
    # Kernels diag(4, 1), of the eigenvalue 4, and of ones, of the eigenvalue 2; of two batches.
    found = weights_of(NTKMTL(exponent=1.0, batches=2), [one, other])
    assert found == pytest.approx([3 / 2, 3 / 1])
    random = np.random.default_rng(1).standard_normal((3, 2, 9))
    kernels = np.einsum("akp,bkp->kab", random, random)
    rates = np.array([np.linalg.eigvalsh(kernel).max() for kernel in kernels])
    found = weights_of(NTKMTL(batches=3), list(random))
    assert found == pytest.approx(np.sqrt(rates.sum() / rates))


def test_a_batch_without_labels_does_not_count() -> None:
    rows = np.random.default_rng(0).standard_normal((2, 3, 20))
    rows[1, 0] = 0
    found = weights_of(NTKMTL(batches=2), list(rows))
    rates = [rows[0, 0] @ rows[0, 0]]
    for task in (1, 2):
        kernel = rows[:, task] @ rows[:, task].T
        rates.append(np.linalg.eigvalsh(kernel).max() / 2)
    assert found == pytest.approx(np.sqrt(sum(rates) / np.array(rates)))


def test_extremes() -> None:
    tiny = weights_of(NTKMTL(), [np.diag([1e-150, 1e-150])])
    assert tiny == pytest.approx([np.sqrt(2), np.sqrt(2)])
    assert weights_of(NTKMTL(), [np.zeros((2, 3))]).tolist() == [0.0, 0.0]
    assert weights_of(NTKMTL(exponent=0.0), [np.eye(3)]).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(UsageError, match="several batches"):
        NTKMTL(batches=2).weights(torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"exponent": -1.0}, r"balancer\.exponent"),
        ({"batches": 0}, r"balancer\.batches"),
        ({"max_norm": 0.0}, r"balancer\.max_norm"),
    ],
)
def test_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        NTKMTL(**settings)
