"""Weights inverse to running means: the golden sequences, scales, absent tasks, and edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from mtlcore.balancing import BalancerContext
from mtlcore.errors import MtlError
from mtlcore_adaloss.balancer import AdaLoss

NAMES = ("red", "green", "blue")


def step(balancer: AdaLoss, losses: Sequence[float], names: Sequence[str] = NAMES) -> list[float]:
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


@pytest.mark.parametrize("normalise", [False, True])
def test_golden_sequences(normalise: bool, golden: Callable[[str], Any]) -> None:
    """Running means and weights, in both scales."""
    sequence = golden("golden_more.json")["sequence"]
    for case in sequence["adaloss"]:
        balancer = AdaLoss(momentum=case["momentum"], normalise=normalise)
        for losses, expected in zip(sequence["losses"], case["steps"], strict=True):
            weights = expected["weights_sum_K" if normalise else "weights"]
            assert step(balancer, losses) == pytest.approx(weights, rel=1e-12)
            means = [balancer.get_extra_state()["means"][name] for name in NAMES]
            assert means == pytest.approx(expected["average"], rel=1e-12)


def test_the_scale_of_a_loss_does_not_matter() -> None:
    """Weighted losses are the same, whatever the units."""
    one, other = AdaLoss(momentum=0.8), AdaLoss(momentum=0.8)
    for losses in ([1.0, 2.0, 3.0], [0.5, 2.5, 1.0], [0.1, 2.0, 0.9]):
        scaled = [x * s for x, s in zip(losses, (1e-6, 1.0, 1e6), strict=True)]
        weights = [w * s for w, s in zip(step(other, scaled), (1e-6, 1.0, 1e6), strict=True)]
        assert step(one, losses) == pytest.approx(weights, rel=1e-12)


def test_absent_tasks_keep_their_mean() -> None:
    balancer = AdaLoss(momentum=0.5, normalise=True)
    step(balancer, [1.0, 2.0, 4.0])
    weights = step(balancer, [1.0, 2.0], ["red", "blue"])
    assert weights == pytest.approx([1.5, 0.5])  # means 1 and 3
    assert balancer.get_extra_state()["means"]["green"] == 2.0
    assert step(balancer, [8.0], ["green"]) == [1.0]
    balancer.reset()
    assert step(balancer, [5.0, 5.0, 5.0]) == [1.0, 1.0, 1.0]


def test_losses_that_are_not_finite_are_left_to_the_step_to_skip() -> None:
    for bad in (math.inf, math.nan):
        losses = dict.fromkeys(NAMES, torch.tensor(bad))
        balanced = AdaLoss().transform(losses, BalancerContext(tasks=NAMES, present=NAMES))
        assert not any(torch.isfinite(loss) for loss in balanced.values())


def test_edges() -> None:
    with pytest.raises(MtlError, match="the loss of green is negative"):
        step(AdaLoss(), [1.0, -0.4, 1.0])
    assert step(AdaLoss(), [0.0, 4.0, 1.0]) == [1.0, 0.25, 1.0]
    assert step(AdaLoss(normalise=True), [0.0, 4.0, 1.0]) == pytest.approx([1.0, 0.4, 1.6])
    assert step(AdaLoss(normalise=True), [0.0, 0.0, 0.0]) == [1.0, 1.0, 1.0]
