"""What balancers of different plugins have in common: identities between methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore.balancing import BalancerContext, GradientBalancer, GramianBalancer


def context(rows: Tensor, **known: Any) -> BalancerContext:
    names = tuple(f"task{i}" for i in range(len(rows)))
    losses = {name: 0.3 + i for i, name in enumerate(names)}
    return BalancerContext(tasks=names, present=names, losses=losses, **known)


def direction(name: str, rows: Tensor, settings: dict[str, Any] | None = None) -> Tensor:
    """Return the update of a first step."""
    balancer = mtlcore.create("balancers", name, **(settings or {}))
    there = context(rows)
    tasks = [mtlcore.Task(name=n, kind="depth", channels=1) for n in there.tasks]
    balancer.prepare(tasks)
    if isinstance(balancer, GradientBalancer):
        return balancer.combine(rows, context=there)
    assert isinstance(balancer, GramianBalancer)
    if balancer.batches > 1:
        there.gramians = (rows @ rows.T).repeat(balancer.batches, balancer.batches, 1, 1)
        there.labelled_batches = torch.full((len(rows),), float(balancer.batches)).double()
    weights = balancer.weights(rows @ rows.T, context=there)
    whole = weights.sum(0) if weights.dim() == 3 else weights
    return (whole if whole.dim() == 1 else whole[0]) @ rows


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


@pytest.fixture(params=range(5))
def rows(request: pytest.FixtureRequest) -> Tensor:
    generator = torch.Generator().manual_seed(request.param)
    found = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    return found * torch.logspace(-2, 2, 4, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # The logarithm, and running means that begin, change lengths only.
        (("db-mtl", {}), ("unit-norm", {})),
        (("ntkmtl", {}), ("unit-norm", {})),
        (("db-mtl", {"beta": 0.5}), ("ntkmtl", {"rescale": True, "max_norm": 1.0})),
        # Without regularisation and noise, the fixed point is that of MGDA.
        (("sdmgrad", {"lam": 0.0}), ("mgda", {})),
        (("sdmgrad", {"lam": 0.0, "batches": 1}), ("mgda", {})),
        (("sdmgrad", {"lam": 1e9}), ("equal", {})),
        # Nothing has moved in the first step.
        (("excessmtl", {}), ("equal", {})),
        (("gradnorm", {}), ("equal", {})),
        (("moco", {"gamma": 0.0}), ("equal", {})),
        (("graddrop", {"leak": 1.0}), ("equal", {})),
        (("ntkmtl", {"exponent": 0.0}), ("equal", {})),
    ],
    ids=str,
)
def test_parallel(rows: Tensor, one: Any, other: Any) -> None:
    found, expected = (
        unit(rows.sum(0) if name == "equal" else direction(name, rows, settings))
        for name, settings in (one, other)
    )
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_gradient_vaccine_with_targets_of_zero_is_pcgrad(rows: Tensor) -> None:
    """Whose orders have nothing to say where there are two tasks."""
    pair = torch.stack([rows[0], rows[1] - rows[0]])
    one, other = (direction(name, pair) for name in ("gradvac", "pcgrad"))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_graddrop_is_the_plain_sum_in_the_mean_and_not_in_a_draw(rows: Tensor) -> None:
    few = rows[:, :2].contiguous()
    balancer = mtlcore.create("balancers", "graddrop")
    balancer.generator = torch.Generator().manual_seed(0)
    found = torch.stack([balancer.combine(few) for _ in range(4000)])
    up, down = few.clamp(min=0).sum(0), -few.clamp(max=0).sum(0)
    # A draw is one of two values, of the variance up * down.
    assert bool(((found - up).abs().minimum((found + down).abs()) < 1e-9 * (up + down)).all())
    assert bool(((found.mean(0) - (up - down)).abs() <= 5 * (up * down / 4000).sqrt()).all())


def test_main_tasks_alone_are_theirs(rows: Tensor) -> None:
    """Where all auxiliary tasks pull against it."""
    against = torch.stack([rows[0], -rows[0] + rows[1] * 1e-3, -rows[0]])
    torch.testing.assert_close(direction("gradcos", against), rows[0])
