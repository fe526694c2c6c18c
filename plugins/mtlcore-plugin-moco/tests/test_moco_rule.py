"""Tracked gradients and weights: the golden sequence, absent tasks, and edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore_moco.balancer import MoCo

Array = NDArray[np.float64]
NAMES = ("task0", "task1", "task2")


def step(
    balancer: MoCo,
    rows: Array,
    number: int = 0,
    present: Sequence[str] = NAMES,
    taken: bool = True,
) -> Array:
    context = BalancerContext(tasks=NAMES, present=tuple(present), step=number)
    update = balancer.combine(torch.from_numpy(rows), context=context).numpy()
    assert balancer.head_weights(context) is None
    if taken:
        balancer.after_step(context)
    else:
        for state in (balancer.tracked, balancer.shares):
            state.discard()
    return np.asarray(update)


def tracked(balancer: MoCo) -> dict[str, Array]:
    return {name: x.numpy() for name, x in balancer.tracked.get_extra_state().items()}


def test_golden_sequence(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    case = golden("golden_more.json")["sequence"]["moco"]
    arrays = golden_arrays("golden_more.npz")
    balancer = MoCo(beta=case["beta"], gamma=case["gamma"], rho=case["rho"])
    steps = zip(arrays["seq_J"], arrays["seq_moco_dir"], case["steps"], strict=True)
    for number, (rows, expected, recorded) in enumerate(steps):
        assert step(balancer, rows, number) == pytest.approx(expected, rel=1e-10)
        weights = balancer.current_weights()
        assert [weights[name] for name in NAMES] == pytest.approx(recorded["lam"], rel=1e-10)
        lengths = [np.linalg.norm(tracked(balancer)[name]) for name in NAMES]
        assert lengths == pytest.approx(recorded["y_norms"], rel=1e-12)
    found = np.stack([tracked(balancer)[name] for name in NAMES])
    assert found == pytest.approx(arrays["seq_moco_y_last"], rel=1e-12)


def test_weights_find_the_shortest_combination() -> None:
    """With constant gradients, lambda goes where MGDA's weights are."""
    rows = np.array([[3.0, 0.0], [0.0, 1.0]])
    balancer = MoCo(beta=1.0, gamma=0.05, rho=0.0)
    for number in range(300):
        found = step(balancer, rows, number, NAMES[:2])
    assert list(balancer.current_weights().values()) == pytest.approx([0.1, 0.9], rel=1e-6)
    assert found == pytest.approx([0.3, 0.9], rel=1e-6)


def test_absent_tasks_keep_what_they_have() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 20))
    balancer = MoCo(beta=0.5)
    step(balancer, rows)
    weights, before = balancer.current_weights(), tracked(balancer)
    found = step(balancer, 2 * rows[[2, 0]], 1, ["task2", "task0"])
    after = balancer.current_weights()
    assert after["task1"] == pytest.approx(weights["task1"], rel=1e-12)
    assert np.array_equal(tracked(balancer)["task1"], before["task1"])
    assert sum(after.values()) == pytest.approx(1)
    # Theirs is the weight that they have together, and the update is a mean of what they track.
    pair = np.stack([0.5 * before[t] + rows[i] for t, i in (("task2", 2), ("task0", 0))])
    old = np.array([weights["task2"], weights["task0"]])
    old /= old.sum()
    moved = old - 0.1 * (pair @ pair.T @ old + 0.1 * old)
    moved += (1 - moved.sum()) / 2
    expected = np.clip(moved, 0, 1)
    assert found == pytest.approx(expected @ pair, rel=1e-9)


def test_a_skipped_step_leaves_no_trace() -> None:
    rows = np.random.default_rng(0).standard_normal((2, 3, 20))
    straight, skipping = MoCo(), MoCo()
    step(skipping, 100 * rows[1], taken=False)
    for balancer in (straight, skipping):
        step(balancer, rows[0])
    step(skipping, 100 * rows[1], 1, taken=False)
    one, other = (step(b, rows[1], 1) for b in (straight, skipping))
    assert np.array_equal(one, other)


def test_those_present_may_have_no_weight_left() -> None:
    """Then they begin anew among themselves, and the others keep all weight."""
    balancer = MoCo(beta=1.0, gamma=10.0, rho=0.0)
    rows = np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 1e-3]])
    step(balancer, rows)
    assert balancer.current_weights() == {"task0": 0.0, "task1": 0.0, "task2": 1.0}
    found = step(balancer, 1e-3 * rows[:2], 1, NAMES[:2])
    assert np.isfinite(found).all() and found.any()
    assert balancer.current_weights() == {"task0": 0.0, "task1": 0.0, "task2": 1.0}


def test_edges() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 20))
    rows[1] = 0
    balancer = MoCo(beta=1.0)
    found = step(balancer, rows)
    assert np.isfinite(found).all() and found.any()
    assert step(MoCo(beta=1.0), rows[:1], present=NAMES[:1]) == pytest.approx(rows[0])
    assert not step(MoCo(), np.zeros((3, 20))).any()
    # Opposite ones of equal length cancel.
    assert np.abs(step(MoCo(beta=1.0), np.stack([rows[0], -rows[0]]), 0, NAMES[:2])).max() < 1e-12
    balancer.reset()
    assert balancer.current_weights() == {} and tracked(balancer) == {}
    alone = MoCo(beta=0.5).combine(torch.from_numpy(rows))
    assert torch.equal(alone, MoCo(beta=0.5).combine(torch.from_numpy(rows)))


@pytest.mark.parametrize("setting", [{"beta": 0.0}, {"gamma": -1.0}, {"rho": -1.0}])
def test_settings(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"balancer.{next(iter(setting))}"):
        MoCo(**setting)
