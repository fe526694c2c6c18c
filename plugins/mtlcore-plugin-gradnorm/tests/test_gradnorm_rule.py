"""Learnt weights of losses: the golden sequence, autograd, a real trunk, and edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mtlcore.balancing import BalancerContext
from mtlcore.errors import MtlError, UsageError
from mtlcore_gradnorm.balancer import GradNorm

Array = NDArray[np.float64]
NAMES = ("task0", "task1", "task2")


def step(
    balancer: GradNorm,
    rows: Any,
    losses: Sequence[float],
    present: Sequence[str] = NAMES,
    asked: bool = True,
) -> list[float]:
    """Take a step; return the weights that it was taken with."""
    stacked = torch.from_numpy(np.asarray(rows, dtype=np.float64))
    context = BalancerContext(tasks=NAMES, present=tuple(present))
    context.losses = dict(zip(present, losses, strict=True))
    found = balancer.weights(stacked @ stacked.T, context=context)
    assert torch.equal(found[0], found[1])  # weights of the losses
    context.gramian = stacked @ stacked.T if asked else None
    balancer.after_step(context)
    return [float(x) for x in found[0]]


def known(balancer: GradNorm) -> list[float]:
    return [balancer.current_weights()[name] for name in NAMES]


def test_golden_sequence(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    sequence, arrays = golden("golden_more.json")["sequence"], golden_arrays("golden_more.npz")
    case = sequence["gradnorm"]
    balancer = GradNorm(alpha=case["alpha"], lr=case["lr"])
    steps = zip(arrays["seq_J"], sequence["losses"], case["steps"], strict=True)
    for rows, losses, recorded in steps:
        assert step(balancer, rows, losses) == pytest.approx(recorded["weights"], rel=1e-11)
        assert known(balancer) == pytest.approx(recorded["weights_after"], rel=1e-11)
    first = balancer.get_extra_state()["first"]
    assert [first[name] for name in NAMES] == case["reference_losses"]


def test_the_step_is_that_of_the_paper_by_autograd() -> None:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, now = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.8, 0.3, 0.4]).double()
    balancer = GradNorm(alpha=0.7, lr=0.01)
    step(balancer, rows, first.tolist())
    weights = torch.tensor(known(balancer), dtype=torch.float64, requires_grad=True)
    lengths = (weights[:, None] * rows).norm(dim=1)
    rates = (now / first) / (now / first).mean()
    objective = (lengths - (lengths.mean() * rates**0.7).detach()).abs().sum()
    (slope,) = torch.autograd.grad(objective, weights)
    moved = weights.detach() - 0.01 * slope
    expected = moved * 3 / moved.sum()
    step(balancer, rows, now.tolist())
    assert known(balancer) == pytest.approx(expected.tolist(), rel=1e-12)


def test_lengths_meet_and_slow_tasks_get_more() -> None:
    rows = np.eye(3) * [[1.0], [2.0], [4.0]]
    balancer = GradNorm(lr=1e-3)
    for _ in range(3000):
        step(balancer, rows, [1.0, 1.0, 1.0])
    lengths = np.array(known(balancer)) * [1.0, 2.0, 4.0]
    assert lengths == pytest.approx(np.full(3, lengths.mean()), rel=1e-2)
    balancer = GradNorm(lr=1e-3)
    step(balancer, np.eye(3), [1.0, 1.0, 1.0])
    for _ in range(2000):
        step(balancer, np.eye(3), [1.0, 0.5, 0.25])
    slow, middle, fast = known(balancer)
    # Targets are not means of lengths, so that they meet nearly.
    assert slow / middle == pytest.approx(2**1.5, rel=0.2)
    assert middle / fast == pytest.approx(2**1.5, rel=0.2)


def test_weights_respond_to_gradients_at_fixed_losses() -> None:
    """What Ludwig's method of this name does not."""
    found = []
    for scale in (1.0, 5.0):
        balancer = GradNorm()
        for _ in range(5):
            step(balancer, np.eye(3) * [[scale], [1.0], [1.0]], [1.0, 1.0, 1.0])
        found.append(known(balancer))
    assert found[0] == pytest.approx([1.0, 1.0, 1.0])
    assert found[1][0] < 0.9 < found[1][1]


def test_absent_tasks_and_steps_that_were_not_asked() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 8))
    balancer = GradNorm()
    step(balancer, rows, [1.0, 2.0, 3.0])
    before = balancer.current_weights()
    step(balancer, rows[[2, 0]], [2.0, 1.0], ["task2", "task0"])
    after = balancer.current_weights()
    assert after["task1"] == before["task1"] and after["task0"] != before["task0"]
    assert sum(after.values()) == pytest.approx(3)
    step(balancer, rows, [1.0, 2.0, 3.0], asked=False)
    assert balancer.current_weights() == after
    balancer.reset()
    assert balancer.current_weights() == {} and balancer.get_extra_state()["first"] == {}


def test_weights_stay_above_zero_and_come_back() -> None:
    balancer = GradNorm(lr=1.0)
    rows = np.eye(2) * [[100.0], [1.0]]
    step(balancer, rows, [1.0, 1.0], NAMES[:2])
    assert balancer.current_weights() == {"task0": 0.0, "task1": 2.0}
    step(balancer, rows, [1.0, 1.0], NAMES[:2])
    assert balancer.current_weights()["task0"] > 0
    # A step that would make all of them 0 changes nothing.
    balancer = GradNorm(lr=1e6, alpha=0.0)
    step(balancer, np.zeros((2, 3)), [1.0, 1.0], NAMES[:2])
    assert balancer.current_weights() == {"task0": 1.0, "task1": 1.0}


def test_edges() -> None:
    balancer = GradNorm()
    for _ in range(3):
        step(balancer, np.ones((1, 4)), [0.5], NAMES[:1])
    assert balancer.current_weights() == {"task0": 1.0}
    balancer = GradNorm()
    for losses in ([0.0, 1.0, 2.0], [0.5, 0.5, 1.0], [0.0, 0.0, 0.0]):
        step(balancer, np.eye(3), losses)
        assert np.isfinite(known(balancer)).all()
    with pytest.raises(MtlError, match="the loss of task1 is negative"):
        step(balancer, np.eye(3), [1.0, -1.0, 1.0])
    assert GradNorm().weights(torch.eye(2).double()).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_it_measures_the_last_shared_layer_and_weighs_everything() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    heads = {name: nn.Linear(3, 1).double() for name in NAMES}
    balancer = GradNorm(lr=0.1)

    def losses_of(inputs: torch.Tensor) -> Mapping[str, torch.Tensor]:
        hidden = last(first(inputs).tanh()).tanh()
        return {n: (head(hidden) - i).square().mean() for i, (n, head) in enumerate(heads.items())}

    for _ in range(3):
        for module in (first, last, *heads.values()):
            module.zero_grad()
        losses = losses_of(torch.randn(6, 4, dtype=torch.float64))
        used = balancer.current_weights() or dict.fromkeys(NAMES, 1.0)
        total = torch.stack([used[n] * loss for n, loss in losses.items()]).sum()
        learnt = [first.weight, last.weight, *(head.weight for head in heads.values())]
        expected = torch.autograd.grad(total, learnt, retain_graph=True)
        norms = [
            torch.autograd.grad(x, list(last.parameters()), retain_graph=True)
            for x in losses.values()
        ]
        context = BalancerContext(tasks=NAMES)
        shared = [*first.parameters(), *last.parameters()]
        balancer.backward(losses, shared, context, last_shared_params=last.parameters())
        for parameter, gradient in zip(learnt, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
        assert context.gramian is not None
        squares = [float(sum(g.square().sum() for g in row)) for row in norms]
        assert context.gramian.diagonal().tolist() == pytest.approx(squares)
        balancer.after_step(context)
    assert len({round(x, 6) for x in balancer.current_weights().values()}) == 3


@pytest.mark.parametrize("setting", ["alpha", "lr"])
def test_settings(setting: str) -> None:
    with pytest.raises(UsageError, match=rf"balancer\.{setting}"):
        GradNorm(**{setting: -1.0})
