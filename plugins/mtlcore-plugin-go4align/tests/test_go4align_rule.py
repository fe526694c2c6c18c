"""Indicators and groups: the golden sequences, every division tried, identities, and edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch

from mtlcore.balancing import BalancerContext
from mtlcore.errors import MtlError
from mtlcore.tasks import Task
from mtlcore_go4align.balancer import GO4Align
from mtlcore_go4align.grouping import group_means

NAMES = ("red", "green", "blue")
TASKS = [Task(name=name, kind="depth", channels=1) for name in NAMES]


def prepared(**settings: Any) -> GO4Align:
    balancer = GO4Align(**settings)
    balancer.prepare(TASKS)
    return balancer


def step(balancer: GO4Align, losses: Sequence[float], names: Sequence[str] = NAMES) -> list[float]:
    """Take a step; return the weights of the losses, from gradients."""
    context = BalancerContext(tasks=NAMES, present=tuple(names))
    leaves = {
        n: torch.tensor(x, dtype=torch.float64, requires_grad=True)
        for n, x in zip(names, losses, strict=True)
    }
    torch.stack([*balancer.transform(dict(leaves), context).values()]).sum().backward()
    context.losses = dict(zip(names, losses, strict=True))
    balancer.after_step(context)
    found = [float(leaf.grad) for leaf in leaves.values() if leaf.grad is not None]
    assert [balancer.current_weights()[name] for name in names] == found
    return found


def probabilities(balancer: GO4Align) -> list[float]:
    masses = balancer.get_extra_state()["masses"]
    return [masses[name] / sum(masses.values()) for name in NAMES]


def test_golden_sequences(golden: Callable[[str], Any]) -> None:
    """Probabilities and weights, for both step sizes and every number of groups."""
    sequence = golden("golden_more.json")["sequence"]
    assert {case["groups"] for case in sequence["go4align"]} == {1, 2, 3}
    for case in sequence["go4align"]:
        balancer = prepared(groups=case["groups"], step_size=case["step_size"])
        for losses, expected in zip(sequence["losses"], case["steps"], strict=True):
            assert step(balancer, losses) == pytest.approx(expected["weights"], rel=1e-12)
            assert probabilities(balancer) == pytest.approx(expected["probabilities"], rel=1e-12)


def divisions(values: Sequence[float], groups: int) -> Iterator[list[list[float]]]:
    """Every division of the sorted numbers into intervals."""
    ordered = sorted(values)
    for cuts in combinations(range(1, len(ordered)), groups - 1):
        edges = (0, *cuts, len(ordered))
        yield [ordered[a:b] for a, b in pairwise(edges)]


def squares(division: Sequence[Sequence[float]]) -> float:
    means = [math.fsum(part) / len(part) for part in division]
    return math.fsum(
        (x - mean) ** 2 for part, mean in zip(division, means, strict=True) for x in part
    )


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 8])
def test_no_division_is_better(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    for scale in (1.0, 1e-12, 1e12):
        drawn = torch.randn(8, generator=generator, dtype=torch.float64).exp() * scale
        values: list[float] = drawn.tolist()
        means = group_means(values, groups)
        found = sum((x - mean) ** 2 for x, mean in zip(values, means, strict=True))
        best = min(map(squares, divisions(values, groups)))
        assert found == pytest.approx(best, rel=1e-9, abs=1e-25 * scale**2)
        assert len(set(means)) == groups
        backwards = group_means(values[::-1], groups)
        assert backwards == means[::-1]


def test_groups_of_many_close_numbers_far_from_zero() -> None:
    """Differences of sums of squares would see no difference between them."""
    values = [1e9, 1e9 + 1e-3, 1e9 + 2.0, 1e9 + 2.001]
    means = group_means(values, 2)
    assert means[0] == means[1] < means[2] == means[3]
    assert group_means([], 2) == []
    assert group_means([3.0, 3.0], 2) == [3.0, 3.0]
    assert group_means([3.0, 1.0], 5) == [3.0, 1.0]


def test_one_group_is_the_plain_sum_and_all_groups_are_relative_losses() -> None:
    losses = [0.2, 3.0, 1.0]
    assert len(set(step(prepared(groups=1), losses))) == 1
    found = step(prepared(groups=3, step_size=0.0), losses)
    assert found == pytest.approx([1.4 / loss for loss in losses], rel=1e-12)


def test_large_losses_lose_probability() -> None:
    balancer = prepared(step_size=0.1)
    for _ in range(5):
        step(balancer, [3.0, 1.0, 2.0])
    red, green, blue = probabilities(balancer)
    assert red < blue < green
    balancer.reset()
    assert probabilities(balancer) == [1 / 3] * 3


def test_absent_tasks_keep_their_probability() -> None:
    balancer = prepared(step_size=0.1)
    step(balancer, [3.0, 1.0, 2.0])
    before = probabilities(balancer)
    step(balancer, [5.0, 1.0], ["red", "blue"])
    after = probabilities(balancer)
    assert after[1] == pytest.approx(before[1], rel=1e-12)
    assert after[0] < before[0]
    assert step(balancer, [7.0], ["green"]) == pytest.approx([1.0])


def test_a_probability_never_vanishes_for_good() -> None:
    balancer = prepared(step_size=1.0)
    for _ in range(3):
        step(balancer, [1e6, 1.0, 1.0])
    assert min(probabilities(balancer)) > 0
    assert all(map(math.isfinite, step(balancer, [1.0, 1e6, 1.0])))


def test_losses_that_are_not_finite_are_left_to_the_step_to_skip() -> None:
    for bad in (math.inf, math.nan):
        losses = dict.fromkeys(NAMES, torch.tensor(bad))
        balanced = prepared().transform(losses, BalancerContext(tasks=NAMES, present=NAMES))
        assert not any(torch.isfinite(loss) for loss in balanced.values())


def test_edges() -> None:
    with pytest.raises(MtlError, match="the loss of green is negative"):
        step(prepared(), [1.0, -0.4, 1.0])
    weights = step(prepared(groups=3, step_size=0.0), [0.0, 1.0, 1.0])
    assert weights == pytest.approx([1.0, 2 / 3, 2 / 3])
    assert step(prepared(), [0.0, 0.0, 0.0]) == [1.0, 1.0, 1.0]
