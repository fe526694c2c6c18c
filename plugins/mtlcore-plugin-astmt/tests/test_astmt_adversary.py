"""The adversary against its equation, and whose gradient goes where."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.standard.resnet import ResNet
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner
from mtlcore_astmt.adversary import GradientAdversary

NAMES = [task.name for task in TINY_TASKS]
INFO = FeatureInfo((6,), (2,))
SIZE = (8, 12)


@pytest.fixture(autouse=True)
def _a_seed() -> None:
    torch.manual_seed(0)


def made(**settings: object) -> tuple[GradientAdversary, Tensor, Tensor, dict[str, Tensor]]:
    """Return an adversary, a map, factors on the map, and losses of squares of both."""
    adversary = GradientAdversary(TINY_TASKS, INFO, **settings)
    for layer in (adversary.discriminator[0], adversary.discriminator[2]):
        torch.nn.init.normal_(layer.weight)  # that it tells something
    x = torch.randn(2, 6, 4, 6, requires_grad=True)
    factors = torch.randn(len(NAMES), 6, 1, 1, requires_grad=True)
    losses = {name: (factors[number] * x).pow(2).sum() for number, name in enumerate(NAMES)}
    return adversary, x, factors, losses


def term(adversary: GradientAdversary, x: Tensor, losses: dict[str, Tensor]) -> Tensor:
    adversary.losses = losses
    batch = tiny_batch(2, size=SIZE)
    found: Tensor = adversary(batch, Features(shared=(x,)), {})["gradient_adversary"]
    return found


def test_the_term_is_that_of_the_equation() -> None:
    adversary, x, factors, losses = made(weight=0.5)
    batch = tiny_batch(2, size=SIZE)
    expected = 0.0
    for number, (name, task) in enumerate(zip(NAMES, TINY_TASKS, strict=True)):
        gradient = 2 * factors[number].square() * x
        direction = gradient / gradient.square().sum(1, keepdim=True).sqrt()
        told = adversary.discriminator(direction).log_softmax(1)[:, number]
        valid = batch.valid[name]
        if task.layout == "map":
            seen = valid[:, ::2, ::2]
        else:
            seen = valid.reshape(2, -1).any(1)[:, None, None].expand(-1, 4, 6)
        expected = expected - told[seen].mean()
    torch.testing.assert_close(term(adversary, x, losses), 0.5 * expected)


@pytest.mark.parametrize("progress", [0.0, 0.1, 1.0])
def test_what_made_the_gradients_learns_the_opposite(progress: float) -> None:
    """Of the derivative without a reversal, found by a pass of its own."""
    adversary, x, factors, losses = made()
    adversary.after_step(BalancerContext(tasks=tuple(NAMES), progress=progress))
    weights = list(adversary.discriminator.parameters())
    *towards, reversed_ = torch.autograd.grad(term(adversary, x, losses), [*weights, factors])

    def plain(factors: Tensor) -> Tensor:
        batch, total = tiny_batch(2, size=SIZE), torch.zeros(())
        for number, name in enumerate(NAMES):
            gradient = 2 * factors[number].square() * x
            direction = gradient / gradient.norm(dim=1, keepdim=True)
            told = adversary.discriminator(direction).log_softmax(1)[:, number]
            seen = adversary._counts(name, batch, x)
            total = total - told[seen].mean()
        return 0.01 * total

    *expected, whole = torch.autograd.grad(plain(factors), [*weights, factors])
    scale = 2 / (1 + math.exp(-10 * progress)) - 1
    torch.testing.assert_close(reversed_, -scale * whole)
    for one, other in zip(towards, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_places_that_are_padded_do_not_count() -> None:
    adversary, *_ = made()
    batch = tiny_batch(2, size=(7, 11))
    for name, task in zip(NAMES, TINY_TASKS, strict=True):
        batch.valid[name].fill_(True)
        counts = adversary._counts(name, batch, torch.zeros(2, 6, 5, 7))
        assert counts.shape == (2, 5, 7)
        if task.layout == "map":
            assert bool(counts[:, :4, :6].all())
            assert not bool(counts[:, 4:].any())
            assert not bool(counts[:, :, 6:].any())


def test_it_reaches_the_backbone_through_the_derivative_of_a_gradient() -> None:
    learner = tiny_learner(backbone=partial(ResNet, depth=18, width=1 / 8, pyramid=True))
    backbone = learner.model.backbone
    info = FeatureInfo(backbone.out_channels, backbone.strides)
    adversary = GradientAdversary(TINY_TASKS, info, weight=1.0)
    adversary.progress.fill_(0.5)
    learner.cross_task.append(adversary)
    for separate in (False, True):
        losses = learner(tiny_batch(2, size=(64, 64)), NAMES, separate=separate)
        assert set(losses.cross) == {"gradient_adversary"}
        assert adversary.losses == {}  # no graph outlives the step
        reached = losses.boundary.leaves if separate else list(backbone.parameters())
        gradients = torch.autograd.grad(
            losses.cross["gradient_adversary"], reached, allow_unused=True
        )
        assert any(g is not None and bool(g.any()) for g in gradients)


def test_a_head_that_reads_another_map_is_refused() -> None:
    adversary, x, _, _ = made()
    other = torch.randn(3, requires_grad=True)
    with pytest.raises(UsageError, match="the head of 'segmentation' does not read"):
        term(adversary, x, {"segmentation": other.sum()})


def test_maps_that_learn_nothing_have_no_term() -> None:
    adversary, x, _, losses = made()
    adversary.losses = losses
    assert adversary(tiny_batch(2, size=SIZE), Features(shared=(x.detach(),)), {}) == {}
