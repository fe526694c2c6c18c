"""Weights by excess risks: golden sequences, heads, absent tasks, and edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore_excessmtl.balancer import ExcessMTL

Array = NDArray[np.float64]
NAMES = ("task0", "task1", "task2")


def step(
    balancer: ExcessMTL, rows: Array, number: int = 0, present: Sequence[str] = NAMES
) -> tuple[Array, list[float]]:
    """Take a step; return the update and the weights of the heads."""
    context = BalancerContext(tasks=NAMES, present=tuple(present), step=number)
    update = balancer.combine(torch.from_numpy(rows), context=context).numpy()
    heads = balancer.head_weights(context)
    assert heads is not None
    balancer.after_step(context)
    return np.asarray(update), heads.tolist()


@pytest.mark.parametrize("number", [0, 1])
def test_golden_sequence(
    number: int, golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    case = golden("golden_more.json")["sequence"]["excessmtl"][number]
    arrays = golden_arrays("golden_more.npz")
    balancer = ExcessMTL(eta=case["step_size"])
    for place, (rows, recorded) in enumerate(zip(arrays["seq_J"], case["steps"], strict=True)):
        update, heads = step(balancer, rows, place)
        assert heads == pytest.approx(recorded["weights"], rel=1e-11)
        assert update == pytest.approx(np.array(recorded["weights"]) @ rows, rel=1e-9)
        assert list(balancer.current_weights().values()) == pytest.approx(heads)
    first = balancer.first.get_extra_state()
    assert [float(first[name]) for name in NAMES] == pytest.approx(case["baseline"], rel=1e-12)
    squares = balancer.squares.get_extra_state()
    found = np.stack([squares[name].numpy() for name in NAMES])
    assert found == pytest.approx(arrays["seq_excessmtl_sum_last"], rel=1e-12)


def test_the_first_step_is_the_plain_sum() -> None:
    """Where TorchJD's weights are already those of the largest gradient alone."""
    rows = np.random.default_rng(0).standard_normal((3, 10_000)) * [[1.0], [1.05], [1.1]]
    update, heads = step(ExcessMTL(eta=1.0), rows)
    assert heads == [1.0, 1.0, 1.0]
    assert update == pytest.approx(rows.sum(0))


def test_the_scale_of_a_loss_does_not_move_the_weights() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 3, 20)) + 5
    scales = np.array([[100.0], [1.0], [10.0]])
    one, other = ExcessMTL(eta=0.5), ExcessMTL(eta=0.5)
    for number in range(4):
        heads = step(one, rows[number], number)[1]
        assert step(other, scales * rows[number], number)[1] == pytest.approx(heads, rel=1e-6)


def test_the_task_with_most_left_to_gain_weighs_more() -> None:
    balancer, random = ExcessMTL(eta=0.2), np.random.default_rng(0)
    for number in range(20):
        rows = random.standard_normal((3, 50)) * np.array([[0.9**number], [1.0], [1.1**number]])
        _, heads = step(balancer, rows, number)
    assert heads[0] < heads[1] < heads[2] and sum(heads) == pytest.approx(3)


def test_it_weighs_heads_of_a_network() -> None:
    torch.manual_seed(0)
    trunk = nn.Linear(4, 5).double()
    heads = {name: nn.Linear(5, 1).double() for name in NAMES}
    balancer = ExcessMTL(eta=1.0)
    for number in range(3):
        for module in (trunk, *heads.values()):
            module.zero_grad()
        inputs = torch.randn(6, 4, dtype=torch.float64)
        losses = {
            n: (head(trunk(inputs).tanh()) - i).square().mean()
            for i, (n, head) in enumerate(heads.items())
        }
        plain = {
            n: torch.autograd.grad(losses[n], [trunk.weight, head.weight], retain_graph=True)
            for n, head in heads.items()
        }
        context = BalancerContext(tasks=NAMES, step=number)
        balancer.backward(losses, trunk.parameters(), context)
        balancer.after_step(context)
        weights = balancer.current_weights()
        expected = sum(weights[n] * plain[n][0] for n in NAMES)
        torch.testing.assert_close(trunk.weight.grad, expected)
        for name, head in heads.items():
            torch.testing.assert_close(head.weight.grad, weights[name] * plain[name][1])
    assert len({round(x, 6) for x in weights.values()}) == 3


def test_absent_tasks_keep_their_weight() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 3, 20))
    balancer = ExcessMTL(eta=1.0)
    for number in range(3):
        step(balancer, rows[number], number)
    before = balancer.current_weights()
    squares = balancer.squares.get_extra_state()["task1"].clone()
    _, heads = step(balancer, rows[3][[2, 0]], 3, ["task2", "task0"])
    after = balancer.current_weights()
    assert after["task1"] == before["task1"]
    assert torch.equal(balancer.squares.get_extra_state()["task1"], squares)
    assert heads == pytest.approx([after["task2"], after["task0"]])
    assert sum(after.values()) == pytest.approx(3)
    assert after["task0"] != before["task0"]


def test_edges() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 20))
    rows[1] = 0
    balancer = ExcessMTL(eta=1.0)
    for number in range(3):
        update, heads = step(balancer, rows, number)
        assert np.isfinite(update).all() and np.isfinite(heads).all()
    assert "task1" not in balancer.first.get_extra_state()  # measured when there is a gradient
    rows[1] = 1
    step(balancer, rows, 3)
    assert "task1" in balancer.first.get_extra_state()
    # A gradient that was tiny at first does not overflow later.
    balancer = ExcessMTL(eta=1.0)
    step(balancer, np.stack([1e-12 * rows[0], rows[2]]), 0, NAMES[:2])
    update, heads = step(balancer, np.stack([1e12 * rows[0], rows[2]]), 1, NAMES[:2])
    assert np.isfinite(update).all() and heads == pytest.approx([2.0, 0.0])
    _, heads = step(balancer, rows[2:], 2, NAMES[1:2])
    assert heads == pytest.approx([0.0])
    alone = ExcessMTL()
    for number in range(3):
        update, heads = step(alone, rows[:1], number, NAMES[:1])
        assert heads == pytest.approx([1.0]) and update == pytest.approx(rows[0])
    alone.reset()
    assert alone.current_weights() == {}
    assert alone.combine(torch.from_numpy(rows)).numpy() == pytest.approx(rows.sum(0))
    assert alone.head_weights() is None


def test_settings() -> None:
    with pytest.raises(UsageError, match=r"balancer\.eta"):
        ExcessMTL(eta=-1.0)
