"""Weights one step ahead: autograd through the step, the authors' differences, Adam, and edges."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore.tasks import Task
from mtlcore_autolambda.balancer import AutoLambda

NAMES = ("red", "green", "blue")
TASKS = [Task(name=name, kind="regression", channels=1) for name in NAMES]
RATE = 0.3


class Net(nn.Module):
    """A trunk and a head per task, smooth, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(5, 4)
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in NAMES})
        self.double()

    def forward(self, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        batch = torch.randn(16, 5, generator=generator, dtype=torch.float64)
        target = torch.randn(3, 16, 1, generator=generator, dtype=torch.float64)
        found = torch.tanh(self.trunk(batch))
        return {
            name: (self.heads[name](found) - target[place]).square().mean()
            for place, name in enumerate(NAMES)
        }


def step(
    net: Net, balancer: AutoLambda, seed: int = 1, names: Sequence[str] = NAMES, take: bool = True
) -> dict[str, float]:
    """Balance one step's gradients; return the weights."""
    context = BalancerContext(tasks=NAMES, learning_rate=RATE)
    losses = {name: loss for name, loss in net(seed).items() if name in names}
    net.zero_grad()
    result = balancer.backward(
        losses, net.trunk.parameters(), context, validation=lambda: net(seed + 100)
    )
    if take:
        balancer.after_step(context)
    return result.weights


def slopes(net: Net, weights: Sequence[float], primary: Sequence[str], seed: int = 1) -> Tensor:
    """Autograd through a gradient step, by the weights."""
    parameters = dict(net.named_parameters())
    chosen = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    total = (chosen * torch.stack([*net(seed).values()])).sum()
    gradients = torch.autograd.grad(total, [*parameters.values()], create_graph=True)
    moved = {
        name: parameter - RATE * gradient
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }
    ahead = functional_call(net, moved, (seed + 100,))
    (found,) = torch.autograd.grad(torch.stack([ahead[name] for name in primary]).sum(), chosen)
    return found


@pytest.mark.parametrize("primary", [(), ("green",), ("red", "blue")])
def test_weights_follow_the_slope_through_the_step(primary: tuple[str, ...]) -> None:
    """Several steps against autograd through the step ahead, and torch's own Adam."""
    net = Net()
    balancer = AutoLambda(primary=primary, lr=0.05, initial=0.4)
    balancer.prepare(TASKS)
    reference = nn.Parameter(torch.full((3,), 0.4, dtype=torch.float64))
    adam = torch.optim.Adam([reference], lr=0.05)
    for seed in range(1, 6):
        reference.grad = slopes(net, reference.tolist(), primary or NAMES, seed)
        adam.step()
        found = step(net, balancer, seed)
        assert [found[name] for name in NAMES] == pytest.approx(reference.tolist(), rel=1e-9)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(RATE * parameter.grad)


def test_the_authors_finite_differences_approach_the_slope() -> None:
    """Their code moves the parameters by 0.01 / |d| along the validation gradient d."""
    net, weights = Net(), [0.4, 0.4, 0.4]
    parameters = [*net.parameters()]
    total = sum(w * x for w, x in zip(weights, net(1).values(), strict=True))
    gradients = torch.autograd.grad(total, parameters)
    before = [p.detach().clone() for p in parameters]

    def put(directions: Sequence[Tensor], scale: float) -> None:
        with torch.no_grad():
            for parameter, old, direction in zip(parameters, before, directions, strict=True):
                parameter.copy_(old + scale * direction)

    put(gradients, -RATE)
    direction = torch.autograd.grad(torch.stack([*net(101).values()]).sum(), parameters)
    step_size = 0.01 / float(torch.cat([d.flatten() for d in direction]).norm())
    ends = []
    for sign in (1, -1):
        put(direction, sign * step_size)
        ends.append(torch.stack([*net(1).values()]).detach())
    put(direction, 0.0)
    differences = -RATE * (ends[0] - ends[1]) / (2 * step_size)
    exact = slopes(net, weights, NAMES)
    torch.testing.assert_close(differences, exact, rtol=1e-3, atol=0)


def test_heads_and_trunk_have_the_same_weight() -> None:
    net, balancer = Net(), AutoLambda()
    balancer.prepare(TASKS)
    weights = step(net, balancer)
    found = [p.grad for p in net.parameters()]
    total = sum(weights[name] * loss for name, loss in net(1).items())
    expected = torch.autograd.grad(total, [*net.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_absent_and_skipped_steps_leave_no_trace() -> None:
    net, balancer = Net(), AutoLambda(primary=("green",), lr=0.05)
    balancer.prepare(TASKS)
    first = step(net, balancer)
    assert step(net, balancer, take=False) == step(net, balancer, take=False)
    without = step(net, balancer, names=("red", "blue"))  # nothing that counts: nothing moves
    assert without == {"red": first["red"], "blue": first["blue"]}
    step(net, balancer, names=("green",))
    again = step(net, balancer, names=("red", "blue"))
    assert again == without
    balancer.reset()
    assert step(net, balancer) == first


def test_what_it_needs_is_said() -> None:
    with pytest.raises(UsageError, match=r"balancer\.primary: no task named 'white'; the run has"):
        AutoLambda(primary=("white",)).prepare(TASKS)
    gramian = torch.eye(3, dtype=torch.float64)
    with pytest.raises(UsageError, match="needs the losses of a validation batch"):
        AutoLambda().weights(gramian)
    net, balancer = Net(), AutoLambda()
    balancer.prepare(TASKS)
    with pytest.raises(UsageError, match=r"set context\.learning_rate"):
        balancer.backward(
            net(1), net.trunk.parameters(), BalancerContext(tasks=NAMES), validation=lambda: net(2)
        )
