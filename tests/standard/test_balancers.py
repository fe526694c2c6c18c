"""Random weights and the geometric mean."""

from __future__ import annotations

import pytest
import torch

from mtlcore.balancing import BalancerContext
from mtlcore.errors import MtlError, UsageError
from mtlcore.standard.balancers import GLS, RLW
from mtlcore.testing import TINY_TASKS, LossBalancerContract


class TestRLW(LossBalancerContract):
    def make(self):
        return RLW()


class TestGLS(LossBalancerContract):
    def make(self):
        return GLS()


class TestFocusedGLS(LossBalancerContract):
    names_tasks = True

    def make(self):
        return GLS(focus=("depth",))


def context(count: int, seed: int = 0) -> BalancerContext:
    names = tuple(f"t{i}" for i in range(count))
    return BalancerContext(
        tasks=names, present=names, generator=torch.Generator().manual_seed(seed)
    )


def weights(count: int, seed: int) -> torch.Tensor:
    here = context(count, seed)
    out = RLW().transform({name: torch.ones(()) for name in here.tasks}, here)
    return torch.stack([*out.values()])


def test_random_weights_are_a_softmax_times_the_number_of_tasks():
    drawn = torch.randn(3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(weights(3, 5), 3 * drawn.softmax(0))
    assert weights(1, 0).tolist() == [1.0]


def test_random_weights_are_equal_on_average():
    many = torch.stack([weights(4, seed) for seed in range(2000)])
    torch.testing.assert_close(many.sum(1), torch.full((2000,), 4.0))
    torch.testing.assert_close(many.mean(0), torch.ones(4), rtol=0, atol=0.06)


def task_losses(x, count, scale):
    return [scale * (i + 1) * (x - 0.3 * i).square().mean() for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 11])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e4])
def test_the_gradient_is_that_of_the_geometric_mean(count, scale):
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    here = context(count)
    losses = dict(zip(here.tasks, task_losses(x, count, scale), strict=True))
    total = torch.stack([*GLS().transform(losses, here).values()]).sum()
    mean = torch.stack([*losses.values()]).prod() ** (1 / count)
    torch.testing.assert_close(total, mean)
    (found,) = torch.autograd.grad(total, x, retain_graph=True)
    (expected,) = torch.autograd.grad(mean, x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("focus", "present"), [((1,), 3), ((0, 2), 3), ((0, 1, 2), 3), ((0, 2), 2), ((2,), 2)]
)
def test_focused_tasks_count_once_more(focus, present):
    """The mean of all times that of the focused ones, among those that are present."""
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    here = context(present)
    losses = dict(zip(here.tasks, task_losses(x, present, 2.0), strict=True))
    balanced = GLS(focus=tuple(f"t{i}" for i in focus)).transform(losses, here)
    values = torch.stack([*losses.values()])
    chosen = [values[i] for i in focus if i < present]
    product = values.prod() ** (1 / present)
    if chosen:
        product = product * torch.stack(chosen).prod() ** (1 / len(chosen))
    total = torch.stack([*balanced.values()]).sum()
    torch.testing.assert_close(total, product * (2 if chosen else 1))
    (found,) = torch.autograd.grad(total, x, retain_graph=True)
    (expected,) = torch.autograd.grad(product, x)
    torch.testing.assert_close(found, expected)


def test_an_unknown_focus_is_refused_by_name():
    with pytest.raises(UsageError, match=r"balancer\.focus: no task named 'deep'; the run has"):
        GLS(focus=("deep", "depth")).prepare(TINY_TASKS)


def test_products_of_small_losses_do_not_vanish():
    """In single precision 1e-55 is 0, and so would be the gradient."""
    start = torch.linspace(0.5, 1.5, 6)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = start.to(dtype).requires_grad_()
        here = context(11)
        losses = dict(zip(here.tasks, task_losses(x, 11, 1e-6), strict=True))
        total = torch.stack([*GLS().transform(losses, here).values()]).sum()
        gradients.append(torch.autograd.grad(total, x)[0].double())
    assert torch.stack([loss.detach() for loss in losses.values()]).float().prod() == 0
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=0)


def test_a_loss_of_zero_is_survived():
    here = context(2)
    x = torch.zeros((), requires_grad=True)
    y = torch.ones((), requires_grad=True)
    out = GLS().transform({"t0": x.square(), "t1": y.square()}, here)
    gradients = torch.autograd.grad(out["t0"] + out["t1"], (x, y))
    assert all(bool(g.isfinite()) for g in gradients)


def test_a_negative_loss_is_refused_by_name():
    here = context(2)
    with pytest.raises(MtlError, match="the loss of t1 is negative"):
        GLS().transform({"t0": torch.ones(()), "t1": -torch.ones(())}, here)
