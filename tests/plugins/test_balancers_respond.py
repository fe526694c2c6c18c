"""What a balancer of gradients must do to bear its name: respond to gradients at fixed losses.

Each installed balancer of Gramians or gradients takes the same steps twice, with the same losses,
random numbers and settings; only the gradients are others. What it makes of them must differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mtlcore.balancing import (
    BalancerContext,
    GradientBalancer,
    GramianBalancer,
    RowBalancer,
)
from mtlcore.plugins import REQUIRED, Plugins, settings_of
from mtlcore.tasks import Task

PLUGINS = Plugins.from_environment(())
NAMES = ("red", "green", "blue")
TASKS = [Task(name=name, kind="depth", channels=1) for name in NAMES]
LOSSES = {"red": 0.7, "green": 2.0, "blue": 1.1}
LENGTH = 60
STEPS = 4
REQUIREMENTS: Mapping[str, Any] = {"main": NAMES[0]}


def installed() -> list[str]:
    return sorted(
        component.spec.name
        for component in PLUGINS.all("balancers")
        if issubclass(component.made(), RowBalancer)
    )


def make(name: str) -> RowBalancer:
    target = PLUGINS.get("balancers", name).load()
    needed = [s.name for s in settings_of(target) if s.default is REQUIRED]
    return cast(RowBalancer, target(**{setting: REQUIREMENTS[setting] for setting in needed}))


def gradients(seed: int, batches: int) -> list[Tensor]:
    """Per batch (K, P), lengths and angles of whose rows depend on the seed; some conflict."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(LENGTH, generator=generator, dtype=torch.float64)
    signs = torch.randn(3, 1, generator=generator, dtype=torch.float64)
    # Short, as some balancers follow the slope of a problem by steps that grow with them.
    lengths = 0.1 * torch.rand(3, 1, generator=generator, dtype=torch.float64) + 0.02
    noise = [
        torch.randn(3, LENGTH, generator=generator, dtype=torch.float64) for _ in range(batches)
    ]
    # Of length about 1, as steps of weights that are absolute need them.
    return [lengths * (signs * common + 0.5 * x) / LENGTH**0.5 for x in noise]


def answer(balancer: RowBalancer, seed: int) -> Tensor:
    """Take some steps; return the shares of the rows in the last one."""
    balancer.prepare(TASKS)
    shares = torch.zeros(3, dtype=torch.float64)
    for number in range(STEPS):
        parts = gradients(seed + number, balancer.batches)
        rows, validation = torch.stack(parts).mean(0), gradients(seed + number + 50, 1)[0]
        products = rows @ validation.T
        context = BalancerContext(
            tasks=NAMES,
            present=NAMES,
            losses=dict(LOSSES),
            step=number,
            progress=number / STEPS,
            generator=torch.Generator().manual_seed(number),
            learning_rate=0.1,
        )
        if balancer.batches > 1:
            context.gramians = torch.stack([torch.stack([a @ b.T for b in parts]) for a in parts])
            context.labelled_batches = torch.full((3,), float(len(parts))).double()
        if balancer.validation is not None:
            context.validation_products = lambda *_, p=products: (p, torch.zeros_like(p[0]))
        shares = share(balancer, rows, context)
        context.gramian, context.reevaluate = rows @ rows.T, lambda: dict(LOSSES)
        balancer.after_step(context)
    return shares


def share(balancer: RowBalancer, rows: Tensor, context: BalancerContext) -> Tensor:
    """What part each row has in the update, as far as rows can make it."""
    if isinstance(balancer, GradientBalancer):
        direction = combined(balancer, rows, context)
        found = torch.linalg.lstsq(rows.T, direction[:, None]).solution[:, 0]
    else:
        assert isinstance(balancer, GramianBalancer)
        weights = balancer.weights(rows @ rows.T, context=context)
        whole = weights.sum(0) if weights.dim() == 3 else weights
        found = whole if whole.dim() == 1 else whole[0]
    return found / found.abs().sum()


def combined(balancer: GradientBalancer, rows: Tensor, context: BalancerContext) -> Tensor:
    """Balance as a run does, where the rows are gradients of losses that are linear."""
    weight = torch.nn.Parameter(torch.zeros(LENGTH, dtype=torch.float64))
    features = 1.0 * weight
    # Linear in the weight, and of the losses' values.
    losses = {n: row @ features + LOSSES[n] for n, row in zip(NAMES, rows, strict=True)}
    cut = [features] if balancer.scope == "features" else []
    balancer.backward(losses, [weight], context, features=cut)
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("name", installed())
def test_it_responds_to_gradients_at_fixed_losses(name: str) -> None:
    one, other = answer(make(name), 1), answer(make(name), 1001)
    assert bool(one.isfinite().all() and other.isfinite().all())
    assert not torch.allclose(one, other, rtol=1e-6, atol=1e-9), f"{name} gives {one} to both"


@pytest.mark.parametrize("name", installed())
def test_the_same_gradients_give_the_same_answer(name: str) -> None:
    """Otherwise the test above would be passed by chance."""
    torch.testing.assert_close(answer(make(name), 1), answer(make(name), 1), rtol=1e-9, atol=1e-9)


class ByLosses(GramianBalancer):
    """Bears the name of a method of gradients, and weighs by the inverse of the losses."""

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        assert context is not None
        return gramian.new_tensor([1 / context.losses[name] for name in context.present])


class BySpeed(GramianBalancer):
    """Weighs by how fast losses fall."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, float] = {}

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        assert context is not None
        return gramian.new_tensor([self.before.get(n, 1.0) / context.losses[n] for n in NAMES])

    def after_step(self, context: BalancerContext) -> None:
        self.before = dict(context.losses)


class ByCoordinate(GradientBalancer):
    """Adds up rows under weights of the losses: a method of gradients by its class alone."""

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        assert context is not None
        weights = rows.new_tensor([1 / context.losses[name] for name in context.present])
        return weights @ rows


@pytest.mark.parametrize("impostor", [ByLosses, BySpeed, ByCoordinate])
def test_what_never_looks_at_a_gradient_is_found_out(impostor: type[RowBalancer]) -> None:
    torch.testing.assert_close(answer(impostor(), 1), answer(impostor(), 1001))
