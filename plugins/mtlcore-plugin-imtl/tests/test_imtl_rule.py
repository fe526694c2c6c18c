"""Equal projections and scaled losses: golden vectors, conditions, and edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore.balancing import BalancerContext
from mtlcore.tasks import Task
from mtlcore_imtl.balancer import IMTLG, IMTLL

Array = NDArray[np.float64]
FIRST, SECOND = np.random.default_rng(5).standard_normal((2, 30))


def weights_of(balancer: IMTLG, rows: Any) -> Array:
    stacked = torch.from_numpy(np.stack(rows).astype(np.float64))
    return balancer.weights(stacked @ stacked.T).numpy()


def test_golden_gradients(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz")
    for case in golden("balancers.json")["cases"]:
        rows, expected = arrays[case["matrix"]], arrays[f"imtlg_dir_{case['id']}"]
        # A condition of 1e12 leaves no more of them in a Gramian.
        tolerance = 1e-3 if case["variant"] == "neardup" else 1e-11
        found = weights_of(IMTLG(), rows) @ rows
        assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected), case["id"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("count", [1, 2, 10, 40])
def test_projections_are_equal_and_weights_sum_to_one(count: int, scale: float) -> None:
    random = np.random.default_rng(count)
    rows = scale * random.standard_normal((count, 60)) * 10 ** random.uniform(-2, 2, (count, 1))
    weights = weights_of(IMTLG(), rows)
    projections = rows @ (weights @ rows) / np.linalg.norm(rows, axis=1)
    assert weights.sum() == pytest.approx(1)
    assert projections == pytest.approx(np.full(count, projections[0]), rel=1e-8)


def test_it_may_point_against_all_tasks_and_says_so() -> None:
    """Where a short gradient lies between long ones, which need negative weights."""
    rows = np.array([[1.0, 1.0, 0.3], [1.0, -1.0, 0.3], [0.01, 0.0, 0.0]])
    balancer = IMTLG()
    weights = weights_of(balancer, rows)
    assert weights.sum() == pytest.approx(1)
    assert (rows @ (weights @ rows) < 0).all()
    assert balancer.status == "degenerate"
    rows[2] *= 100
    assert (rows @ (weights_of(balancer, rows) @ rows) > 0).all()
    assert balancer.status == "converged"


def test_edges() -> None:
    balancer = IMTLG()
    assert weights_of(balancer, [FIRST, -2 * FIRST, SECOND]).tolist() == [0, 0, 0]
    assert balancer.status == "degenerate"
    assert weights_of(balancer, [FIRST, FIRST]) == pytest.approx([0.5, 0.5])
    assert balancer.status == "converged"
    with_zero = weights_of(balancer, [FIRST, 0 * FIRST, SECOND])
    assert balancer.status == "degenerate" and with_zero[1] == 0
    assert with_zero[[0, 2]] == pytest.approx(weights_of(balancer, [FIRST, SECOND]))


def test_weights_respond_to_gradients() -> None:
    """In inverse proportion to the length, for orthogonal ones."""
    assert weights_of(IMTLG(), [[1, 0], [0, 3]]) == pytest.approx([0.75, 0.25])


# Losses


NAMES = ("red", "green", "blue")


def prepared() -> IMTLL:
    balancer = IMTLL().double()
    balancer.prepare([Task(name=name, kind="depth", channels=1) for name in NAMES])
    return balancer.double()


def test_golden_losses(golden: Callable[[str], Any]) -> None:
    sequence = golden("golden_more.json")["sequence"]
    balancer = prepared()
    optimizer = torch.optim.SGD(balancer.parameters(), lr=sequence["imtl_l"]["lr"])
    for values, step in zip(sequence["losses"], sequence["imtl_l"]["steps"], strict=True):
        found = [balancer.current_weights()[name] for name in NAMES]
        assert found == pytest.approx(step["weights"], rel=1e-12)
        losses = {
            n: torch.tensor(x, dtype=torch.float64) for n, x in zip(NAMES, values, strict=True)
        }
        balanced = balancer.transform(losses, BalancerContext(tasks=NAMES, present=NAMES))
        optimizer.zero_grad()
        torch.stack([*balanced.values()]).sum().backward()
        optimizer.step()
    found = [float(balancer.log_scale[task.key].detach()) for task in tasks()]
    assert found == pytest.approx(sequence["imtl_l"]["steps"][-1]["s_after"], rel=1e-12)


def tasks() -> list[Task]:
    return [Task(name=name, kind="depth", channels=1) for name in NAMES]


def test_the_scale_of_constant_losses_becomes_their_inverse() -> None:
    balancer = prepared()
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.2)
    losses = {n: torch.tensor(x) for n, x in zip(NAMES, (0.1, 1.0, 4.0), strict=True)}
    for _ in range(200):
        optimizer.zero_grad()
        sum(balancer.transform(losses, BalancerContext(tasks=NAMES)).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    found = [balancer.current_weights()[name] for name in NAMES]
    assert found == pytest.approx([10.0, 1.0, 0.25], rel=1e-3)


def test_learning_rate_and_decay_of_the_scales() -> None:
    (group,) = prepared().parameter_groups()
    assert group["weight_decay"] == 0 and "lr" not in group
    balancer = IMTLL(lr=1e-3, initial=0.5)
    balancer.prepare(tasks())
    (group,) = balancer.parameter_groups()
    assert group["lr"] == 1e-3
    assert balancer.current_weights()["red"] == pytest.approx(np.exp(0.5))
