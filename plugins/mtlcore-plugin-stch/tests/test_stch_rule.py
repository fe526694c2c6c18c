"""The smooth maximum: golden sequences, gradients of the objective, nadirs, and edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from mtlcore.balancing import BalancerContext
from mtlcore.errors import MtlError, UsageError
from mtlcore.tasks import Task
from mtlcore_stch.balancer import STCH

NAMES = ("red", "green", "blue")
TASKS = [Task(name=name, kind="depth", channels=1) for name in NAMES]


def step(
    balancer: STCH, losses: Sequence[float], epoch: int = 0, names: Sequence[str] = NAMES
) -> list[float]:
    """Take a step; return the weights of the losses, from gradients."""
    context = BalancerContext(tasks=NAMES, present=tuple(names), epoch=epoch)
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


def test_golden_sequence(golden: Callable[[str], Any]) -> None:
    """A warm-up, an epoch whose means are the nadir, and the smooth maximum."""
    sequence = golden("golden_more.json")["sequence"]
    case = sequence["stch_log"]
    balancer = STCH(mu=case["mu"], warmup=case["warmup_epoch"])
    for number, (losses, expected) in enumerate(
        zip(sequence["losses"], case["steps"], strict=True)
    ):
        found = step(balancer, losses, number // case["steps_per_epoch"])
        assert found == pytest.approx(expected["weights"], rel=1e-12), number
    kept = balancer.get_extra_state()["nadirs"]
    nadirs = [kept[name][1] / kept[name][2] for name in NAMES]
    assert nadirs == pytest.approx(case["nadir"], rel=1e-12)


def test_golden_sequence_of_the_paper_s_form(golden: Callable[[str], Any]) -> None:
    sequence = golden("golden_more.json")["sequence"]
    case = sequence["stch_paper"]
    balancer = STCH(
        form="plain",
        mu=case["mu"],
        preferences=dict(zip(NAMES, case["preference"], strict=True)),
        references=dict(zip(NAMES, case["reference"], strict=True)),
    )
    balancer.prepare(TASKS)
    for losses, expected in zip(sequence["losses"], case["steps"], strict=True):
        assert step(balancer, losses) == pytest.approx(expected["weights"], rel=1e-12)


@pytest.mark.parametrize("mu", [0.05, 0.5, 1.0, 3.0])
def test_the_weights_are_the_gradient_of_the_objective(mu: float) -> None:
    nadir = torch.tensor([2.0, 0.5, 9.0], dtype=torch.float64)
    balancer = STCH(mu=mu, warmup=0)
    step(balancer, nadir.tolist(), epoch=0)
    losses = torch.tensor([1.1, 0.2, 8.0], dtype=torch.float64, requires_grad=True)
    objective = 3 * mu * torch.logsumexp((losses / nadir).log() / mu, 0)
    (expected,) = torch.autograd.grad(objective, losses)
    found = step(balancer, losses.tolist(), epoch=1)
    assert found == pytest.approx(expected.tolist(), rel=1e-12)
    plain = STCH(form="plain", mu=mu, preferences={"red": 3.0})
    parts = torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64)
    objective = mu * torch.logsumexp(parts * losses / mu, 0)
    (expected,) = torch.autograd.grad(objective, losses)
    assert step(plain, losses.tolist()) == pytest.approx(expected.tolist(), rel=1e-12)


def test_with_mu_one_the_ratios_of_the_weights_are_those_of_the_inverse_nadirs() -> None:
    """What the class says of the default: no maximum, but constant weights up to a factor."""
    balancer = STCH(warmup=0)
    step(balancer, [2.0, 0.5, 8.0], epoch=0)
    for losses in ([1.0, 0.4, 3.0], [0.1, 0.1, 7.9]):
        red, green, blue = step(balancer, losses, epoch=1)
        assert [green / red, blue / red] == pytest.approx([4.0, 0.25], rel=1e-12)


def test_a_small_mu_leaves_only_the_worst() -> None:
    balancer = STCH(mu=1e-3, warmup=0)
    step(balancer, [1.0, 1.0, 1.0], epoch=0)
    assert step(balancer, [0.5, 0.4, 0.2], epoch=1) == pytest.approx([6.0, 0.0, 0.0], abs=1e-9)


def test_who_comes_late_has_a_nadir_of_their_own_first_epoch() -> None:
    """Until that is over, a late task is in the sum of logarithms beside the maximum."""
    balancer = STCH(mu=0.5, warmup=1)
    step(balancer, [7.0, 7.0], epoch=0, names=NAMES[:2])  # counts for nothing
    step(balancer, [1.0, 4.0], epoch=1, names=NAMES[:2])
    step(balancer, [3.0, 4.0], epoch=1, names=NAMES[:2])
    both = step(balancer, [1.0, 1.0], epoch=2, names=NAMES[:2])
    expected = torch.tensor([1 / 2, 1 / 4], dtype=torch.float64).pow(2)
    assert both == pytest.approx((2 * expected / expected.sum()).tolist())
    assert step(balancer, [1.0, 1.0, 5.0], epoch=2) == pytest.approx([*both, 1 / 5])
    third = step(balancer, [1.0, 1.0, 5.0], epoch=3)
    expected = torch.tensor([1 / 2, 1 / 4, 1.0], dtype=torch.float64).pow(2)
    weights = 3 * expected / expected.sum() / torch.tensor([1.0, 1.0, 5.0])
    assert third == pytest.approx(weights.tolist())
    balancer.reset()
    assert step(balancer, [2.0, 2.0, 2.0], epoch=9) == [0.5, 0.5, 0.5]


def test_the_nadir_survives_a_restart() -> None:
    """LibMTL divides by zero there: it keeps nadirs outside of its state."""
    balancer, other = STCH(warmup=0), STCH(warmup=0)
    step(balancer, [2.0, 3.0, 4.0], epoch=0)
    other.load_state_dict(balancer.state_dict())
    assert step(other, [1.0, 1.0, 1.0], 1) == step(balancer, [1.0, 1.0, 1.0], 1)


@pytest.mark.parametrize("form", ["log", "plain"])
def test_losses_that_are_not_finite_are_left_to_the_step_to_skip(form: Any) -> None:
    for bad in (math.inf, math.nan):
        losses: Mapping[str, torch.Tensor] = dict.fromkeys(NAMES, torch.tensor(bad))
        context = BalancerContext(tasks=NAMES, present=NAMES)
        balanced = STCH(form=form).transform(dict(losses), context)
        assert not any(torch.isfinite(loss) for loss in balanced.values())


def test_edges() -> None:
    with pytest.raises(MtlError, match="the loss of green is negative and has no logarithm"):
        step(STCH(), [1.0, -0.4, 1.0])
    assert all(map(math.isfinite, step(STCH(form="plain"), [1.0, -0.4, 1.0])))
    balancer = STCH(warmup=0)
    step(balancer, [0.0, 1.0, 1.0])
    assert all(map(math.isfinite, step(balancer, [0.0, 1.0, 0.0], epoch=1)))
    assert step(balancer, [4.0], epoch=1, names=["blue"]) == pytest.approx([1 / 4])
    for setting in ("preferences", "references"):
        plain = STCH(form="plain", **{setting: {"white": 1.0}})
        with pytest.raises(UsageError, match=rf"balancer\.{setting}: no task named 'white'"):
            plain.prepare(TASKS)
        with pytest.raises(UsageError, match=rf"balancer\.{setting}: the form 'log' has none"):
            STCH(**{setting: {"red": 1.0}})
