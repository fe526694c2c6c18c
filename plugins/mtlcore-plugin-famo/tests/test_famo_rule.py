"""Rates of the losses: the golden sequence, the objective's gradient, and edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from mtlcore.balancing import BalancerContext
from mtlcore.errors import MtlError, UsageError
from mtlcore.tasks import Task
from mtlcore_famo.balancer import FAMO

NAMES = ("red", "green", "blue")
TASKS = [Task(name=name, kind="depth", channels=1) for name in NAMES]


def prepared(**settings: Any) -> FAMO:
    balancer = FAMO(**settings)
    balancer.prepare(TASKS)
    return balancer


def step(
    balancer: FAMO, before: Sequence[float], after: Sequence[float], names: Sequence[str] = NAMES
) -> list[float]:
    """Take a step; return the weights of the losses, from gradients."""
    context = BalancerContext(tasks=NAMES, present=tuple(names))
    leaves = {
        n: torch.tensor(x, dtype=torch.float64, requires_grad=True)
        for n, x in zip(names, before, strict=True)
    }
    torch.stack([*balancer.transform(dict(leaves), context).values()]).sum().backward()
    context.losses = dict(zip(names, before, strict=True))
    context.reevaluate = lambda: dict(zip(names, after, strict=True))
    balancer.after_step(context)
    return [float(leaf.grad) for leaf in leaves.values() if leaf.grad is not None]


@pytest.mark.parametrize("number", [0, 1])
def test_golden_sequence(number: int, golden: Callable[[str], Any]) -> None:
    """Weights, logits and both moments of Adam, with and without least losses."""
    sequence = golden("golden_more.json")["sequence"]
    case = sequence["famo"][number]
    balancer = prepared(
        lr=case["lr"],
        weight_decay=case["weight_decay"],
        min_losses=dict(zip(NAMES, case["min_losses"], strict=True)),
    )
    pairs = zip(sequence["losses"], sequence["losses_after"], case["steps"], strict=True)
    for before, after, expected in pairs:
        shares = [balancer.current_weights()[name] for name in NAMES]
        assert shares == pytest.approx(expected["z"], rel=1e-12)
        assert step(balancer, before, after) == pytest.approx(expected["weights"], rel=1e-12)
        states = [balancer.get_extra_state()[name] for name in NAMES]
        for place, key in enumerate(("logits_after", "exp_avg", "exp_avg_sq")):
            found = [state[place] for state in states]
            assert found == pytest.approx(expected[key], rel=1e-9), key


def test_the_weights_are_the_gradient_of_the_objective() -> None:
    balancer = prepared()
    step(balancer, [1.0, 2.0, 3.0], [0.5, 1.9, 3.0])
    shares = balancer.current_weights()
    losses = torch.tensor([0.3, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([shares[name] for name in NAMES], dtype=torch.float64)
    distance = losses + 1e-8
    objective = (z * distance.log()).sum() / (z / distance).sum().detach()
    (expected,) = torch.autograd.grad(objective, losses)
    found = step(balancer, losses.tolist(), losses.tolist())
    assert found == pytest.approx(expected.tolist(), rel=1e-12)
    assert sum(found) == pytest.approx(1)


def test_who_falls_least_gets_more() -> None:
    balancer = prepared()
    for _ in range(20):
        step(balancer, [1.0, 1.0, 1.0], [0.5, 0.9, 0.99])
    shares = balancer.current_weights()
    assert shares["red"] < shares["green"] < shares["blue"]
    balancer.reset()
    assert set(balancer.current_weights().values()) == {1 / 3}


def test_absent_tasks_keep_their_part() -> None:
    balancer = prepared()
    step(balancer, [1.0, 1.0, 1.0], [0.5, 0.9, 0.99])
    before = balancer.get_extra_state()["green"]
    weights = step(balancer, [1.0, 1.0], [0.9, 0.1], ["red", "blue"])
    assert sum(weights) == pytest.approx(1)
    assert balancer.get_extra_state()["green"] == before
    assert step(balancer, [4.0], [3.0], ["red"]) == [1.0]


def test_infinite_losses_are_left_to_the_step_to_skip() -> None:
    infinite = dict.fromkeys(NAMES, torch.tensor(math.inf))
    balanced = prepared().transform(infinite, BalancerContext(tasks=NAMES, present=NAMES))
    assert not any(torch.isfinite(loss) for loss in balanced.values())


def test_edges() -> None:
    balancer = prepared(min_losses={"green": 0.5})
    with pytest.raises(MtlError, match="loss of green is below"):
        step(balancer, [1.0, 0.4, 1.0], [1.0, 1.0, 1.0])
    state = balancer.get_extra_state()
    weights = step(balancer, [0.0, 1.0, 1.0], [math.nan, 1.0, 1.0])
    assert weights[0] == pytest.approx(1)  # a loss of 0 falls fastest
    assert balancer.get_extra_state() == state  # not by what is not finite
    step(balancer, [1.0, 1.0, 1.0], [1.0, 0.1, 1.0])  # below the least: counts as there
    assert all(math.isfinite(x) for x in balancer.current_weights().values())
    with pytest.raises(UsageError, match="no task named 'white'"):
        prepared(min_losses={"white": 1.0})
    context = BalancerContext(tasks=NAMES, present=NAMES, losses=dict.fromkeys(NAMES, 1.0))
    with pytest.raises(UsageError, match="losses after each step"):
        balancer.after_step(context)
