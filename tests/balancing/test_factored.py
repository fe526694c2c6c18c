"""Gradients at wide linear layers as factors: the same numbers, without a matrix per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mtlcore.balancing.factored
from mtlcore.balancing import (
    BalancerContext,
    GradientBalancer,
    GramianBalancer,
    TaskGradients,
    rows,
)

WIDTH, TASKS = 300, ("a", "b", "c")


class Chosen(GramianBalancer):
    """Weights that follow the Gramian, which it keeps."""

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        self.seen = gramian
        return 1 / gramian.diagonal().sqrt().clamp_min(1e-12)


class Mean(GradientBalancer):
    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        return rows.mean(0)


def trunk(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(40, WIDTH, bias), nn.Tanh(), nn.Linear(WIDTH, WIDTH, bias), nn.Tanh(),
        nn.Linear(WIDTH, 2 * WIDTH, bias),
    )  # fmt: skip


def losses_of(net: nn.Module, inputs: Tensor, tasks: Sequence[str] = TASKS) -> dict[str, Tensor]:
    features = net(inputs)
    weights = torch.randn(
        len(TASKS), features.shape[-1], generator=torch.Generator().manual_seed(1)
    )
    return {
        task: ((features * row).tanh() ** 2).mean() * 10**number
        for number, (task, row) in enumerate(zip(TASKS, weights, strict=True))
        if task in tasks
    }


def step(
    net: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    balancer: Any,
    factors: bool = True,
    scale: float = 1.0,
) -> list[Tensor | None]:
    """One step over micro-batches; the gradients that it leaves."""
    net.zero_grad()
    gradients = TaskGradients(net.parameters(), {t: [] for t in TASKS}, factors=factors)
    for losses in batches:
        gradients.collect_rows({task: loss * scale for task, loss in losses.items()})
    gradients.unscale(scale)
    context = BalancerContext(tasks=TASKS, present=TASKS)
    assert gradients.apply(balancer, context).status == "converged"
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def alike(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> None:
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.fixture(params=["of a processor", "of a GPU"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many weights each block of losses kept as factors; matrices lie in either memory."""
    if request.param == "of a GPU":
        monkeypatch.setattr(rows, "_is_large", lambda parameter: False)
    counts: list[int] = []
    begin = mtlcore.balancing.factored.FactoredRows.begin

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        edges = begin(self, *arguments, **named)
        counts.append(len(edges))
        return edges

    monkeypatch.setattr(mtlcore.balancing.factored.FactoredRows, "begin", counted)
    return counts


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8,), (2, 3), (1, 2, 2)])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_update_and_gramian_are_those_of_matrices(
    bias: bool, shape: tuple[int, ...], scale: float, kept: list[int]
) -> None:
    net, inputs = trunk(bias), torch.randn(*shape, 40)
    one, other = Chosen(), Chosen()
    found = step(net, [losses_of(net, inputs)], one, True, scale)
    assert kept == [2], "the two wide layers"
    alike(found, step(net, [losses_of(net, inputs)], other, False, scale))
    torch.testing.assert_close(one.seen, other.seen, rtol=1e-5, atol=0.0)


def test_micro_batches_add_up_whatever_tasks_and_layers_they_have(kept: list[int]) -> None:
    net = trunk()
    inputs = [torch.randn(n, 40, generator=torch.Generator().manual_seed(n)) for n in (4, 5, 3)]

    def batches() -> list[dict[str, Tensor]]:
        return [
            losses_of(net, inputs[0]),
            losses_of(net, inputs[1], ("b",)),
            # The same layer twice in one graph, from here on a matrix.
            losses_of(net, inputs[2]) | {"c": net[2](net[2](net[:2](inputs[2]))).square().mean()},
        ]

    one, other = Chosen(), Chosen()
    alike(step(net, batches(), one), step(net, batches(), other, False))
    assert kept[:3] == [2, 2, 1]
    torch.testing.assert_close(one.seen, other.seen, rtol=1e-5, atol=0.0)
    # The other way round: what began as a matrix stays one.
    del kept[:]
    alike(step(net, batches()[::-1], Chosen()), step(net, batches()[::-1], Chosen(), False))
    assert kept[:3] == [1, 1, 1]


def test_a_task_that_does_not_reach_a_layer_has_zeros_there(kept: list[int]) -> None:
    net, inputs = trunk(), torch.randn(6, 40)

    def losses() -> dict[str, Tensor]:
        middle = net[:4](inputs)
        return {"a": net[4](middle).square().mean(), "b": middle.square().mean(),
                "c": net[:2](inputs).square().mean()}  # fmt: skip

    one, other = Chosen(), Chosen()
    alike(step(net, [losses()], one), step(net, [losses()], other, False))
    torch.testing.assert_close(one.seen, other.seen, rtol=1e-5, atol=0.0)
    assert kept[0] == 2
    found = step(net, [{"c": losses()["c"]}], Chosen())
    assert [gradient is None for gradient in found] == [False, False, True, True, True, True]


@pytest.mark.parametrize("samples", [200, 2000])
def test_where_matrices_are_cheaper_they_are_made(samples: int, kept: list[int]) -> None:
    net = trunk()
    step(net, [losses_of(net, torch.randn(samples, 40))], Chosen())
    assert kept == [0]


@pytest.mark.parametrize(
    "change", ["double use", "transposed", "through autocast", "scaled", "hooked"]
)
def test_what_is_no_plain_layer_is_a_matrix(change: str, kept: list[int]) -> None:
    weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)
    inputs = torch.randn(4, WIDTH)
    turned = weight.t()
    outputs = {
        "double use": lambda: inputs @ turned + inputs.tanh() @ turned,
        "transposed": lambda: inputs @ weight,
        "through autocast": lambda: (inputs.bfloat16() @ weight.bfloat16().t()).float(),
        "scaled": lambda: torch.addmm(torch.zeros(WIDTH), inputs, turned, alpha=3.0),
        "hooked": lambda: inputs @ turned,
    }[change]
    if change == "hooked":
        weight.register_hook(lambda gradient: gradient * (gradient > 0))

    def losses() -> dict[str, Tensor]:
        z = outputs()
        return {"a": z.square().mean(), "b": z.tanh().mean()}

    net = nn.ParameterList([weight])
    alike(step(net, [losses()], Chosen()), step(net, [losses()], Chosen(), False))
    assert kept[0] == 0


def test_balancers_that_read_rows_get_them(kept: list[int]) -> None:
    net, inputs = trunk(), torch.randn(4, 40)
    found = step(net, [losses_of(net, inputs)], Mean())
    assert kept == [2]
    alike(found, step(net, [losses_of(net, inputs)], Mean(), False))


@pytest.mark.parametrize("tasks", [3, 10])
def test_the_price_is_that_of_less_than_k_matrices(tasks: int) -> None:
    """Counted: a matrix per task (2 n in out each) or products of inputs and of gradients."""
    width, count = 1024, 8
    layer, inputs = nn.Linear(width, width, bias=False), torch.randn(count, width)
    readers = torch.randn(tasks, width)

    def flops(factors: bool) -> int:
        z = layer(inputs)
        losses = {str(k): (z * row).tanh().sum() for k, row in enumerate(readers)}
        with FlopCounterMode(display=False) as counter:
            gradients = TaskGradients(layer.parameters(), {t: [] for t in losses}, factors=factors)
            gradients.collect_rows(losses)
            gradients.gramian()
        return counter.get_total_flops()

    assert flops(False) == 2 * tasks * count * width**2
    assert flops(True) == 2 * count**2 * (width * (1 + tasks**2) + tasks**2)
    assert flops(True) < flops(False) / 5


def test_a_loop_of_ones_own_has_them_too(kept: list[int]) -> None:
    net, inputs = trunk(), torch.randn(4, 40)
    found = []
    for balancer in (Chosen(), Mean()):
        net.zero_grad()
        balancer.backward(losses_of(net, inputs), shared_params=list(net.parameters()))
        found.append([p.grad for p in net.parameters()])
    assert kept == [2, 0]
    alike(found[0], step(net, [losses_of(net, inputs)], Chosen(), False))


def test_a_buffer_takes_memory_when_a_matrix_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, where all matrices lie in buffers, factors would save none otherwise."""
    monkeypatch.setattr(rows, "_is_large", lambda parameter: False)
    wide, other = torch.zeros(300, 300), torch.zeros(5)
    found = rows.SharedRows([wide, other], 2, optional=[0])
    of_wide, _ = sorted(found._small(), key=lambda buffer: min(buffer.spans))
    found.add(("a", 0), [None, torch.ones(5)])
    found.add(("b", 0), [None, 2 * torch.ones(5)])
    assert found.gramian().tolist() == [[5, 10], [10, 20]]
    assert found.direction([1.0, 1.0])[0] is None
    assert of_wide.memory is None
    found.add(("b", 0), [torch.ones(300, 300), None])
    assert of_wide.memory is not None
    assert found.gramian().tolist() == [[5, 10], [10, 20 + 300**2]]
    found.clear()
    found.add(("b", 0), [None, torch.ones(5)])
    found.add(("a", 0), [torch.ones(300, 300), None])
    assert found.gramian().tolist() == [[5, 0], [0, 300**2]]
