"""Unit gradients of log losses: golden steps and sequences, identities, and edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mtlcore.balancing import BalancerContext
from mtlcore.errors import MtlError
from mtlcore_dbmtl.balancer import DBMTL

Array = NDArray[np.float64]


def step(
    balancer: DBMTL,
    rows: Array,
    losses: Sequence[float],
    number: int = 0,
    names: Sequence[str] | None = None,
) -> Array:
    names = tuple(names or (f"task{i}" for i in range(len(rows))))
    known = dict(zip(names, losses, strict=True))
    context = BalancerContext(tasks=names, present=names, losses=known, step=number)
    update = balancer.combine(torch.from_numpy(rows), context=context).numpy()
    heads = balancer.head_weights(context)
    assert heads is not None and heads.tolist() == pytest.approx([1 / x for x in losses])
    balancer.after_step(context)
    return np.asarray(update)


def test_golden_first_steps(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz") | golden_arrays("golden_more.npz")
    for case in golden("golden_more.json")["cases"]:
        rows, expected = arrays[case["matrix"]], arrays[f"dbmtl_dir_{case['id']}"]
        found = step(DBMTL(beta=case["dbmtl"]["beta"]), rows, case["losses"])
        assert np.linalg.norm(found - expected) <= 1e-12 * np.linalg.norm(expected), case["id"]
        heads = [1 / x for x in case["losses"]]
        assert heads == pytest.approx(case["dbmtl"]["head_weights"])


@pytest.mark.parametrize("number", [0, 1])
def test_golden_sequence(
    number: int, golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    sequence, arrays = golden("golden_more.json")["sequence"], golden_arrays("golden_more.npz")
    case = sequence["dbmtl"][number]
    balancer = DBMTL(beta=case["beta"], sigma=case["beta_sigma"])
    directions = arrays[f"seq_dbmtl_dir_sigma{case['beta_sigma']}"]
    steps = zip(arrays["seq_J"], sequence["losses"], directions, case["steps"], strict=True)
    for place, (rows, losses, expected, recorded) in enumerate(steps):
        assert step(balancer, rows, losses, place) == pytest.approx(expected, rel=1e-10)
        state = balancer.means.get_extra_state()
        lengths = [float(state[f"task{i}"].norm()) for i in range(len(rows))]
        assert lengths == pytest.approx(recorded["buffer_norms"], rel=1e-12)


def test_the_first_step_is_parallel_to_unit_gradients() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 20)) * [[1e-3], [1], [5], [1e3]]
    found = step(DBMTL(), rows, [0.1, 1.0, 7.0, 3.0])
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(axis=0)
    assert found / np.linalg.norm(found) == pytest.approx(units / np.linalg.norm(units))


def test_the_scale_of_a_loss_does_not_matter() -> None:
    rows, losses = np.random.default_rng(0).standard_normal((3, 20)), np.array([0.1, 1.0, 7.0])
    scales = np.array([1e-6, 1.0, 1e6])
    one, other = DBMTL(), DBMTL()
    for number in range(3):
        expected = step(one, rows * (number + 1), losses, number)
        found = step(other, scales[:, None] * rows * (number + 1), scales * losses, number)
        assert found == pytest.approx(expected, rel=1e-9)


def test_absent_tasks_keep_their_mean_and_steps_that_are_skipped_leave_none() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 20))
    balancer = DBMTL()
    step(balancer, rows, [1.0, 1.0, 1.0])
    before = balancer.means.get_extra_state()["task1"].clone()
    found = step(balancer, rows[::2], [1.0, 1.0], 1, ["task0", "task2"])
    assert torch.equal(balancer.means.get_extra_state()["task1"], before)
    assert found @ rows[0] != 0
    names = ("task0", "task1", "task2")
    context = BalancerContext(tasks=names, present=names, losses=dict.fromkeys(names, 1.0), step=2)
    balancer.combine(torch.from_numpy(100 * rows), context=context)  # no after_step
    assert torch.equal(balancer.means.get_extra_state()["task1"], before)


def test_edges() -> None:
    rows = np.stack([np.zeros(5), np.arange(5.0)])
    assert step(DBMTL(beta=0.0), rows, [1.0, 2.0]) == pytest.approx(np.arange(5.0) / 2)
    assert not step(DBMTL(), np.zeros((2, 5)), [1.0, 1.0]).any()
    with pytest.raises(MtlError, match="loss of task1 is negative"):
        step(DBMTL(), rows, [1.0, -1.0])
    balancer = DBMTL(beta=0.0)
    alone = balancer.combine(torch.from_numpy(rows))  # losses count as 1
    assert alone.tolist() == pytest.approx([0, 1, 2, 3, 4])
    assert balancer.head_weights() is None
    step(balancer, rows, [1.0, 1.0])
    balancer.reset()
    assert balancer.means.get_extra_state() == {}
