"""DSelect-k: its step, its selectors and its terms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mtlcore.errors import UsageError
from mtlcore_mmoe.gates import DSelectK, Gate, smooth_step

F64 = torch.float64


@pytest.fixture(autouse=True)
def _a_seed() -> None:
    torch.manual_seed(0)


def gate(experts: int = 6, inputs: int = 3, **settings: object) -> DSelectK:
    made = Gate(name="dselect-k", **settings).make(inputs, experts)  # type: ignore[arg-type]
    assert isinstance(made, DSelectK)
    return made.double()


def saturated(selecting: list[int], experts: int, gamma: float = 1.0) -> DSelectK:
    """A gate whose selectors have decided, for these experts."""
    made = gate(experts, k=len(selecting), gamma=gamma, static=True)
    with torch.no_grad():
        made.digits.copy_((made.codes[selecting].to(F64) - 0.5) * gamma)
    return made


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_step_is_the_papers(gamma: float) -> None:
    x = torch.linspace(-1.5, 1.5, 61, dtype=F64, requires_grad=True)
    y = smooth_step(x, gamma)
    inside = -2 / gamma**3 * x**3 + 3 / (2 * gamma) * x + 0.5
    expected = torch.where(x <= -gamma / 2, 0.0, torch.where(x >= gamma / 2, 1.0, inside))
    torch.testing.assert_close(y, expected)
    assert bool(((y == 0) == (x <= -gamma / 2)).all())
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert bool((slope >= 0).all())
    assert not bool(slope[x.abs() >= gamma / 2].any())
    torch.testing.assert_close(smooth_step(torch.tensor(gamma / 4), gamma), torch.tensor(0.84375))


@pytest.mark.parametrize("experts", [2, 5, 8])
def test_every_expert_can_be_the_one(experts: int) -> None:
    for number in range(experts):
        weights, terms = saturated([number], experts, gamma=0.7)(torch.zeros(2, 3, dtype=F64))
        expected = torch.eye(experts, dtype=F64)[number].expand(2, -1)
        assert torch.equal(weights, expected)
        assert terms["gate_entropy"].item() == pytest.approx(0, abs=1e-11)
        if experts == 5:
            assert terms["gate_reach"].item() == pytest.approx(1, abs=1e-5)
        else:
            assert "gate_reach" not in terms


def test_no_more_than_k_experts_have_a_weight() -> None:
    made = saturated([4, 1], experts=6)
    with torch.no_grad():
        made.parts.copy_(torch.tensor([math.log(3.0), 0.0]))
    weights, _ = made(torch.zeros(1, 3, dtype=F64))
    torch.testing.assert_close(weights[0], torch.tensor([0, 0.25, 0, 0, 0.75, 0], dtype=F64))


@pytest.mark.parametrize("experts", [6, 8])
def test_weights_and_terms_are_those_of_the_equations(experts: int) -> None:
    """Computed with loops, from the gate's two linear layers."""
    made = gate(experts, k=2, gamma=2.0, entropy=0.3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
    x = torch.randn(5, 3, dtype=F64)
    weights, terms = made(x)
    found, entropy, reach = np.zeros((5, experts)), 0.0, 0.0
    for n in range(5):
        parts = np.exp(made.of_parts(x[n]).detach().numpy())
        z = made.of_digits(x[n]).detach().numpy().reshape(2, 3)
        s = np.clip(-2 / 8 * z**3 + 3 / 4 * z + 0.5, 0, 1)
        s[z <= -1], s[z >= 1] = 0, 1
        for i in range(2):
            r = [
                math.prod(s[i, b] if made.codes[e, b] else 1 - s[i, b] for b in range(3))
                for e in range(experts)
            ]
            found[n] += parts[i] / parts.sum() * np.array(r)
            entropy -= sum(p * math.log(p + 1e-6) for p in r) / 5
            reach += 1 / (sum(r) + 1e-6) / 5
    np.testing.assert_allclose(weights.detach().numpy(), found, rtol=1e-10)
    assert terms["gate_entropy"].item() == pytest.approx(0.3 * entropy, rel=1e-10)
    if experts == 6:
        assert terms["gate_reach"].item() == pytest.approx(reach, rel=1e-10)
    else:
        torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=F64))
        assert set(terms) == {"gate_entropy"}
    assert made.eval()(x)[1] == {}


def test_gradients_are_right() -> None:
    made = gate(5, k=2, entropy=0.5)

    def whole(x: Tensor) -> tuple[Tensor, ...]:
        weights, terms = made(x)
        return weights, *terms.values()

    assert torch.autograd.gradcheck(whole, torch.randn(3, 3, dtype=F64, requires_grad=True))


def descend(made: DSelectK, steps: int, lr: float) -> None:
    """Let the terms of a static gate alone pull at it."""
    for _ in range(steps):
        _, terms = made(torch.zeros(1, 3, dtype=F64))
        (gradient,) = torch.autograd.grad(torch.stack([*terms.values()]).sum(), made.digits)
        with torch.no_grad():
            made.digits -= lr * gradient


def test_the_entropy_makes_selectors_decide() -> None:
    """Nothing else pulls at them: in the end each selector gives all its weight to one expert."""
    made = gate(8, k=2, entropy=1.0, static=True)
    nothing = torch.zeros(1, 3, dtype=F64)
    before, _ = made(nothing)
    assert int((before > 0).sum()) == 8
    descend(made, steps=100, lr=0.05)
    after, terms = made(nothing)
    assert int((after > 0).sum()) <= 2
    torch.testing.assert_close(after.sum(), torch.tensor(1.0, dtype=F64))
    assert terms["gate_entropy"].item() == pytest.approx(0, abs=1e-5)


def test_weight_on_numbers_that_no_expert_has_is_driven_out() -> None:
    made = gate(5, k=1, entropy=0.0, static=True)
    with torch.no_grad():
        made.digits.fill_(0.3)  # to the number 7, of 0 to 4
    nothing = torch.zeros(1, 3, dtype=F64)
    assert made(nothing)[0].sum().item() < 0.5
    descend(made, steps=100, lr=0.01)
    assert made(nothing)[0].sum().item() > 0.99


def test_where_no_expert_has_a_weight_the_terms_are_finite() -> None:
    made = gate(5, k=1, static=True)
    with torch.no_grad():
        made.digits.fill_(9.0)
    weights, terms = made(torch.zeros(2, 3, dtype=F64))
    assert not bool(weights.any())
    assert all(bool(term.isfinite()) for term in terms.values())


def test_first_logits_lie_within_the_published_bounds() -> None:
    made = gate(8, inputs=50, k=4, gamma=2.0)
    for layer, bound in ((made.of_digits, 0.02), (made.of_parts, 0.05)):
        values = torch.cat([layer.weight.flatten(), layer.bias])
        assert 0.9 * bound < values.abs().max().item() <= bound


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (3, 4)])
def test_there_must_be_experts_to_select_from(experts: int, k: int) -> None:
    with pytest.raises(UsageError, match=r"model\.backbone\.gate\.k"):
        Gate(name="dselect-k", k=k).make(3, experts)
