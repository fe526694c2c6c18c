"""Dropped signs: golden vectors and draws, mean and variance, features by autograd, and edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext
from mtlcore_graddrop.balancer import GradDrop, drop

NAMES = ("a", "b", "c")


def test_golden_draws(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz") | golden_arrays("golden_more.npz")
    for case in golden("golden_more.json")["cases"]:
        rows = torch.from_numpy(arrays[case["matrix"]])
        draws = torch.from_numpy(arrays[f"graddrop_u_{case['id']}"])
        expected = arrays[f"graddrop_at_u_{case['id']}"]
        assert drop(rows, rows, draws, 0.0).numpy() == pytest.approx(expected, rel=1e-12)


def test_mean_and_variance_of_the_golden_cases(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    """Of the two values that a coordinate can have; a mean alone is that of the plain sum."""
    arrays = golden_arrays("balancers.npz") | golden_arrays("golden_more.npz")
    for case in golden("golden_more.json")["cases"]:
        rows = torch.from_numpy(arrays[case["matrix"]])
        high, low = (drop(rows, rows, torch.full_like(rows[0], u), 0.0) for u in (0.0, 1 - 1e-12))
        positive, negative = rows.clamp(min=0).sum(0), -rows.clamp(max=0).sum(0)
        purity = positive / (positive + negative)
        mean = purity * high + (1 - purity) * low
        variance = purity * (1 - purity) * (high - low) ** 2
        assert mean.numpy() == pytest.approx(arrays[f"graddrop_mean_{case['id']}"], rel=1e-9)
        expected = arrays[f"graddrop_var_{case['id']}"]
        assert variance.numpy() == pytest.approx(expected, rel=1e-6, abs=1e-9 * expected.max())


def test_draws_have_that_mean_and_variance() -> None:
    """10,000 draws, within five standard errors of each."""
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    balancer = GradDrop()
    balancer.generator = torch.Generator().manual_seed(1)
    wide = rows.repeat(1, 10_000)
    found = balancer.combine(wide).view(10_000, 6)
    p, m = rows.clamp(min=0).sum(0), -rows.clamp(max=0).sum(0)
    assert bool(((found - p).abs().minimum((found + m).abs()) < 1e-12).all())
    errors = (found.mean(0) - (p - m)).abs()
    assert bool((errors <= 5 * (p * m / 10_000).sqrt() + 1e-12).all())
    # The variance of a coin's square.
    q = p / (p + m)
    spread = (q * (1 - q) * (1 - 2 * q) ** 2 / 10_000).sqrt() * (p + m) ** 2
    assert bool(((found.var(0, correction=0) - p * m).abs() <= 5 * spread + 1e-2).all())
    assert bool((found.std(0) > 0.1).any())


@pytest.mark.parametrize("leak", [0.0, 0.25, 1.0])
def test_what_is_dropped_leaks(leak: float) -> None:
    rows = torch.tensor([[2.0], [-1.0]])
    assert float(drop(rows, rows, torch.tensor([0.1]), leak)) == pytest.approx(2 - leak)
    assert float(drop(rows, rows, torch.tensor([0.9]), leak)) == pytest.approx(2 * leak - 1)


class Network(nn.Module):
    """A trunk with features (B, 3, 2, 2) and a head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(2, 3, 2)
        self.heads = nn.ModuleDict({n: nn.Conv2d(3, 1, 2) for n in NAMES})

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.trunk(inputs).tanh()
        losses = {
            name: (head(features) - number).square().mean()
            for number, (name, head) in enumerate(self.heads.items())
        }
        return features, losses


@pytest.mark.parametrize("leak", [0.0, 0.4])
def test_at_features_it_is_the_published_rule(leak: float) -> None:
    """One draw per feature; the sign is that of value times gradient, summed over the batch."""
    torch.manual_seed(0)
    network = Network().double()
    features, losses = network(torch.randn(5, 2, 3, 3, dtype=torch.float64))
    assert features.shape == (5, 3, 2, 2)
    gradients = torch.stack(
        [torch.autograd.grad(x, features, retain_graph=True)[0] for x in losses.values()]
    )
    draws = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(7))
    values, expected = features.detach(), torch.zeros_like(features)
    conflicts = 0
    for place in np.ndindex(3, 2, 2):
        pulls = [
            float(sum(values[b][place] * gradients[k, b][place] for b in range(5)))
            for k in range(3)
        ]
        purity = 0.5 * (1 + sum(pulls) / sum(map(abs, pulls)))
        conflicts += 0 < purity < 1
        for k, pull in enumerate(pulls):
            stays = pull > 0 if purity > float(draws[place]) else pull < 0
            for b in range(5):
                expected[b][place] += (1.0 if stays else leak) * gradients[k, b][place]
    assert conflicts > 3
    best = torch.autograd.grad(features, list(network.trunk.parameters()), expected, True)
    heads = {
        n: torch.autograd.grad(losses[n], head.weight, retain_graph=True)[0]
        for n, head in network.heads.items()
    }
    balancer = GradDrop(leak=leak, scope="features")
    context = BalancerContext(tasks=NAMES, generator=torch.Generator().manual_seed(7))
    balancer.backward(losses, network.trunk.parameters(), context, features=[features])
    for parameter, gradient in zip(network.trunk.parameters(), best, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-14)
    for name, head in network.heads.items():
        torch.testing.assert_close(head.weight.grad, heads[name])


@pytest.mark.parametrize("scope", ["shared", "features"])
def test_one_task_is_left_alone(scope: Any) -> None:
    torch.manual_seed(0)
    network = Network().double()
    features, losses = network(torch.randn(5, 2, 3, 3, dtype=torch.float64))
    shared = list(network.trunk.parameters())
    expected = torch.autograd.grad(losses["b"], shared, retain_graph=True)
    GradDrop(scope=scope).backward({"b": losses["b"]}, shared, features=[features])
    for parameter, gradient in zip(shared, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_draw_is_that_of_the_generator() -> None:
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    balancer = GradDrop()
    balancer.generator = torch.Generator().manual_seed(3)
    draws = torch.rand(50, generator=torch.Generator().manual_seed(3))
    assert torch.equal(balancer.combine(rows), drop(rows, rows, draws, 0.0))


def test_edges(golden: Callable[[str], Any]) -> None:
    for case in golden("golden_more.json")["degenerate"]:
        rows = torch.tensor(case["rows"], dtype=torch.float64)
        found = torch.stack(
            [drop(rows, rows, torch.full_like(rows[0], u), 0.0) for u in np.arange(0.5, 600) / 600]
        )
        assert found.mean(0).tolist() == pytest.approx(case["graddrop_mean"], abs=1e-2)
        assert found.var(0, correction=0).tolist() == pytest.approx(case["graddrop_var"], abs=1e-2)
    # A feature that is 0 in every sample pulls nowhere, and is not dropped.
    rows = torch.ones(2, 1, 3)
    assert drop(rows, torch.zeros(2, 1, 3), torch.rand(1, 3), 0.0).tolist() == [[2.0, 2.0, 2.0]]
