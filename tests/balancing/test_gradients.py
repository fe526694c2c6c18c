"""Rows of gradients under real networks: against plain autograd, in every scope.

One file: all of it runs on the networks and sizes at its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtlcore.balancing import (
    BalancerContext,
    GradientBalancer,
    GramianBalancer,
    TaskGradients,
    products,
)
from mtlcore.balancing import rows as rows_module
from mtlcore.balancing.rows import SharedRows
from mtlcore.engine.checks import check_model
from mtlcore.errors import UsageError
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.segnet import SegNet
from mtlcore.standard.unet import UNet
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner

WEIGHTS = (2.0, -0.5, 3.0)
NAMES = ("a", "b", "c")
NEAR = {"rtol": 1e-9, "atol": 1e-12}


class Given(GramianBalancer):
    """Fixed weights; keeps the Gramian that it was shown."""

    def __init__(self, scope="shared", weights=WEIGHTS):
        super().__init__()
        self.scope = scope
        self.given = torch.tensor(weights, dtype=torch.float64)
        self.gramian = None

    def weights(self, gramian, context=None):
        self.gramian = gramian.clone()
        return self.given[..., : len(gramian)].clone()


class Signs(GradientBalancer):
    """A function of the coordinates: the mean of those with the majority's sign."""

    def __init__(self, elementwise):
        super().__init__()
        self.granularity = "element" if elementwise else "whole"

    def combine(self, rows, context=None):
        return signs(rows)


def signs(rows):
    return (rows * (rows.sign() == rows.sum(0).sign())).mean(0)


class First(GradientBalancer):
    """Answers with a part of what it was shown."""

    def combine(self, rows, context=None):
        return rows[0]


class Network(nn.Module):
    """A trunk and three heads; the trunk gives (B, width)."""

    def __init__(
        self, trunk: nn.Module, width: int, call: Callable[[Tensor], Tensor] | None = None
    ):
        super().__init__()
        self.trunk, self.call = trunk, call or trunk
        self.heads = nn.ModuleDict({name: nn.Linear(width, 2) for name in NAMES})

    def losses(self, inputs, names=NAMES):
        self.features = self.call(inputs)
        found = {}
        for number, name in enumerate(names):
            found[name] = (self.heads[name](self.features) - number).square().mean()
        return found

    def own(self):
        return {name: list(head.parameters()) for name, head in self.heads.items()}


def conv_with_batch_norm():
    trunk = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    )  # fmt: skip
    return Network(trunk, 16), torch.randn(4, 3, 9, 9)


def lstm():
    trunk = nn.LSTM(5, 6, num_layers=2, batch_first=True)
    return Network(trunk, 6, lambda x: trunk(x)[0][:, -1]), torch.randn(3, 4, 5)


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return Network(layer, 8, lambda x: layer(x).mean(1)), torch.randn(3, 4, 8)


def checkpointed():
    trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh())

    def call(x):
        for part in (trunk[:2], trunk[2:]):
            x = checkpoint(part, x, use_reentrant=False)
        return x

    return Network(trunk, 6, call), torch.randn(4, 5)


def frozen():
    trunk = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6))
    trunk[0].weight.requires_grad_(False)
    return Network(trunk, 6), torch.randn(4, 5)


def tied():
    layer = nn.Linear(5, 5)
    trunk = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 5, bias=False))
    trunk[4].weight = layer.weight
    return Network(trunk, 5), torch.randn(4, 5)


NETWORKS = [conv_with_batch_norm, lstm, transformer, checkpointed, frozen, tied]


@pytest.fixture(params=["small", "large", "mixed"])
def sizes(request, monkeypatch):
    """Where the line between small and large parameters runs; large ones are read in pieces."""
    limit = {"small": 10**6, "large": 0, "mixed": 20}[request.param]
    monkeypatch.setattr(rows_module, "SMALL", limit)
    monkeypatch.setattr(products, "_PIECE", {"cpu": 7})
    monkeypatch.setattr(rows_module, "_STRETCH", 300)
    return request.param


def built(make) -> tuple[Network, Tensor]:
    torch.manual_seed(0)
    network, inputs = make()
    return network.double(), inputs.double()


def jacobian(losses: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """(K, P) by plain autograd."""
    found = []
    for loss in losses.values():
        row = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
        pairs = zip(row, inputs, strict=True)
        found.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten()
                                for g, p in pairs]))  # fmt: skip
    return torch.stack(found)


def flat_grads(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.grad.flatten() for p in parameters])


def apply(gradients, balancer, **known):
    return gradients.apply(balancer, BalancerContext(tasks=NAMES), **known)


def learning(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


@pytest.mark.parametrize("make", NETWORKS)
def test_weighted_rows_are_plain_autograd(make, sizes):
    network, inputs = built(make)
    shared = learning(network.trunk)
    rows = jacobian(network.losses(inputs), shared)
    given = Given()
    gradients = TaskGradients(network.trunk.parameters(), network.own())
    for _ in range(2):  # the second step finds the first one's buffers
        gradients.collect_rows(network.losses(inputs))
        result = apply(gradients, given)
        torch.testing.assert_close(given.gramian, rows @ rows.T, **NEAR)
        expected = torch.tensor(WEIGHTS, dtype=rows.dtype) @ rows
        torch.testing.assert_close(flat_grads(shared), expected, **NEAR)
    assert result.weights == dict(zip(NAMES, WEIGHTS, strict=True))
    for name, loss in network.losses(inputs).items():
        own = network.own()[name]
        for p, g in zip(own, torch.autograd.grad(loss, own, retain_graph=True), strict=True):
            torch.testing.assert_close(p.grad, g, **NEAR)
    assert all(p.grad is None for p in network.trunk.parameters() if not p.requires_grad)


@pytest.mark.parametrize("elementwise", [True, False])
def test_balancers_of_gradients_see_every_coordinate(elementwise, sizes):
    network, inputs = built(transformer)
    shared = learning(network.trunk)
    gradients = TaskGradients(shared, network.own())
    gradients.collect_rows(network.losses(inputs))
    apply(gradients, Signs(elementwise))
    expected = signs(jacobian(network.losses(inputs), shared))
    torch.testing.assert_close(flat_grads(shared), expected, **NEAR)


def test_an_answer_may_be_one_of_the_rows(sizes):
    network, inputs = built(conv_with_batch_norm)
    shared = learning(network.trunk)
    gradients = TaskGradients(shared, network.own())
    gradients.collect_rows(network.losses(inputs))
    apply(gradients, First())
    before = flat_grads(shared).clone()
    gradients.collect_rows(network.losses(inputs * 2))
    torch.testing.assert_close(flat_grads(shared), before, rtol=0, atol=0)


def test_micro_batches_add_up_and_tasks_come_and_go(sizes):
    network, inputs = built(transformer)
    shared = learning(network.trunk)
    gradients, given = TaskGradients(shared, network.own()), Given()
    parts = [(inputs, ("a", "b")), (inputs * 2, ("b", "c")), (inputs - 1, ("c", "a"))]
    expected = torch.zeros(3, sum(p.numel() for p in shared), dtype=inputs.dtype)
    for part, names in parts:
        gradients.collect_rows(network.losses(part, names))
        rows = jacobian(network.losses(part, names), shared)
        for name, row in zip(names, rows, strict=True):
            expected[NAMES.index(name)] += row
    gradients.unscale(4.0)
    expected /= 4
    apply(gradients, given)
    torch.testing.assert_close(given.gramian, expected @ expected.T, **NEAR)
    total = torch.tensor(WEIGHTS, dtype=inputs.dtype) @ expected
    torch.testing.assert_close(flat_grads(shared), total, **NEAR)
    # A step of other tasks finds nothing of these.
    gradients.collect_rows(network.losses(inputs, ("c",)))
    apply(gradients, given)
    (row,) = jacobian(network.losses(inputs, ("c",)), shared)
    torch.testing.assert_close(flat_grads(shared), 2.0 * row, **NEAR)
    assert network.heads["a"].weight.grad is None


def test_accumulating_edits_what_is_there(sizes):
    network, inputs = built(lstm)
    shared = learning(network.trunk)
    gradients = TaskGradients(shared, network.own())
    before = [torch.ones_like(p) for p in shared]
    for parameter, there in zip(shared, before, strict=True):
        parameter.grad = there
    gradients.collect_rows(network.losses(inputs))
    apply(gradients, Given(), accumulate=True)
    expected = torch.tensor(WEIGHTS).double() @ jacobian(network.losses(inputs), shared) + 1
    torch.testing.assert_close(flat_grads(shared), expected, **NEAR)
    assert all(p.grad is there for p, there in zip(shared, before, strict=True))


def test_gradients_that_share_memory_are_told_apart(sizes):
    """Autograd gives one tensor for both of `a + b`, and one number expanded for a sum."""
    a, b, own = (nn.Parameter(torch.arange(30.0)) for _ in range(3))
    gradients = TaskGradients([a, b], {"a": [own], "b": []})
    losses = {"a": (a + b + own).square().sum(), "b": (a + b).sum()}
    gradients.collect_rows(losses)
    apply(gradients, Given(weights=(3.0, 10.0)))
    slope = 6 * torch.arange(30.0)
    torch.testing.assert_close(own.grad, slope)
    for parameter in (a, b):
        torch.testing.assert_close(parameter.grad, 3 * slope + 10)
    a.grad.zero_()
    assert bool(b.grad.any()) and bool(own.grad.any())


@pytest.mark.parametrize("names", [NAMES, ("a",)])
def test_what_nothing_reaches_stays_none(names, sizes):
    network, inputs = built(tied)
    spare = nn.Parameter(torch.ones(40, dtype=torch.float64))
    some = nn.Parameter(torch.ones(40, dtype=torch.float64))
    gradients = TaskGradients([spare, *learning(network.trunk), some], network.own())
    losses = network.losses(inputs, names)
    losses["a"] = losses["a"] + some.square().sum()
    gradients.collect_rows(losses)
    apply(gradients, Given())
    assert spare.grad is None
    torch.testing.assert_close(some.grad, WEIGHTS[0] * 2 * some.detach())


def test_bfloat16_autocast(sizes):
    network, inputs = built(conv_with_batch_norm)
    network, inputs = network.float(), inputs.float()
    shared = learning(network.trunk)

    def losses():
        with torch.autocast("cpu", torch.bfloat16):
            found = network.losses(inputs)
        return {name: loss.float() for name, loss in found.items()}

    rows = jacobian(losses(), shared).double()
    gradients, given = TaskGradients(shared, network.own()), Given()
    gradients.collect_rows(losses())
    apply(gradients, given)
    torch.testing.assert_close(given.gramian, rows @ rows.T, rtol=1e-4, atol=1e-6)
    expected = torch.tensor(WEIGHTS) @ rows.float()
    torch.testing.assert_close(flat_grads(shared), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_rows_are_multiplied_in_float32(sizes):
    parameter = nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 1000, generator=generator).to(torch.bfloat16)
    rows = SharedRows([parameter], 2)
    rows.add(("a", 0), [one.clone()])
    rows.add(("b", 0), [two.clone()])
    exact = torch.stack([one, two]).double()
    torch.testing.assert_close(rows.gramian(), exact @ exact.T, rtol=1e-5, atol=1e-3)
    (found,) = rows.direction([1.0, 0.5])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact[0] + exact[1] / 2, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("columns", [0, 1, 2**16, 2**16 + 1, 5 * 2**14, 10**6])
def test_inner_products_do_not_lose_digits_with_length(columns):
    """A single product of a million columns is wrong by 1e-5: all terms have one sign."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(5, columns + 3, generator=generator)
    rows, others = whole[:3, :columns], whole[:, :columns]
    found = products.products_of(rows, others)
    torch.testing.assert_close(found, rows.double() @ others.double().T, rtol=2e-6, atol=0)


@pytest.mark.parametrize("weights", [(0.25, 1.0), (1.0, 0.25), (0.0, 1.0), (-2.0, 3.0)])
def test_every_weight_counts_whatever_it_is(weights, sizes):
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(30))]
    rows, given = SharedRows(parameters, 2), {}
    for task in "ab":
        given[task] = [torch.randn_like(p, requires_grad=False) for p in parameters]
        rows.add((task, 0), [gradient.clone() for gradient in given[task]])
    for found, one, other in zip(rows.direction(weights), *given.values(), strict=True):
        torch.testing.assert_close(found, weights[0] * one + weights[1] * other)


@pytest.mark.parametrize("by_parameter", [False, True])
def test_where_nothing_is_shared_nothing_is_combined(by_parameter, sizes):
    for parameters in ([], [nn.Parameter(torch.zeros(3))]):
        rows = SharedRows(parameters, 2)
        for task in "ab":
            rows.add((task, 0), [None] * len(parameters))
        combined = rows.combined_each if by_parameter else rows.combined
        found = combined(lambda *matrix: pytest.fail("nothing to combine"))
        assert found == [None] * len(parameters)


def test_parameters_of_two_precisions(sizes):
    single = nn.Parameter(torch.randn(30))
    double = nn.Parameter(torch.randn(30, dtype=torch.float64))
    gradients, given = TaskGradients([single, double], dict.fromkeys(NAMES, ())), Given()
    total = single.double() * double
    losses = {name: ((n + 1) * total).sin().sum() for n, name in enumerate(NAMES)}
    rows = jacobian(losses, [single, double]).double()
    gradients.collect_rows(losses)
    apply(gradients, given)
    torch.testing.assert_close(given.gramian, rows @ rows.T, rtol=1e-5, atol=1e-5)
    assert (single.grad.dtype, double.grad.dtype) == (torch.float32, torch.float64)


# Scopes


def test_features_weigh_what_reaches_the_cut(sizes):
    network, inputs = built(conv_with_batch_norm)
    shared = learning(network.trunk)
    losses = network.losses(inputs)
    at_cut = jacobian(losses, [network.features])
    rows = jacobian(losses, shared)
    given = Given("features")
    gradients = TaskGradients(shared, network.own(), (), "features")
    gradients.collect_rows(losses, cut=(network.features,))
    apply(gradients, given)
    torch.testing.assert_close(given.gramian, at_cut @ at_cut.T, **NEAR)
    torch.testing.assert_close(flat_grads(shared), torch.tensor(WEIGHTS).double() @ rows, **NEAR)
    check_heads(network, inputs)


def test_last_shared_weighs_what_reaches_the_last_layer(sizes):
    network, inputs = built(conv_with_batch_norm)
    shared, last = learning(network.trunk), learning(network.trunk[3])
    at_last, rows = (jacobian(network.losses(inputs), of) for of in (last, shared))
    given = Given("last_shared")
    gradients = TaskGradients(shared, network.own(), (), "last_shared", last)
    gradients.collect_rows(network.losses(inputs))
    apply(gradients, given)
    torch.testing.assert_close(given.gramian, at_last @ at_last.T, **NEAR)
    torch.testing.assert_close(flat_grads(shared), torch.tensor(WEIGHTS).double() @ rows, **NEAR)
    check_heads(network, inputs)


def check_heads(network: Network, inputs: Tensor) -> None:
    for name, loss in network.losses(inputs).items():
        own = network.own()[name]
        for p, g in zip(own, torch.autograd.grad(loss, own, retain_graph=True), strict=True):
            torch.testing.assert_close(p.grad, g, **NEAR)


@pytest.mark.parametrize("scope", ["features", "last_shared"])
def test_micro_batches_of_other_scopes(scope):
    """Scaled losses, a task in one part only, and a term that is not balanced."""
    network, inputs = built(checkpointed)
    shared, last = learning(network.trunk), learning(network.trunk[2])
    given, scale = Given(scope), 8.0
    gradients = TaskGradients(shared, network.own(), (), scope, last)
    whole, grams = torch.zeros(3, sum(p.numel() for p in shared)).double(), []
    for part, names in ((inputs, NAMES), (inputs * 2, ("a", "c"))):
        losses = network.losses(part, names)
        cut = network.features
        rows, measured = torch.zeros_like(whole), [cut] if scope == "features" else last
        numbers = [NAMES.index(name) for name in names]
        rows[numbers] = jacobian(losses, shared)
        at = torch.zeros(3, sum(x.numel() for x in measured)).double()
        at[numbers] = jacobian(losses, measured)
        whole += rows
        grams.append(at)
        extra = cut.square().sum() * scale
        (beside,) = jacobian({"extra": cut.square().sum()}, shared)
        whole[0] += beside / WEIGHTS[0]
        scaled = {name: loss * scale for name, loss in losses.items()}
        gradients.collect_rows(scaled, retain_graph=True, cut=(cut,))
        gradients.collect_sum([extra])
    gradients.unscale(scale)
    apply(gradients, given)
    joint = torch.cat(grams, dim=1) if scope == "features" else sum(grams)
    torch.testing.assert_close(given.gramian, joint @ joint.T, **NEAR)
    torch.testing.assert_close(flat_grads(shared), torch.tensor(WEIGHTS).double() @ whole, **NEAR)
    # Nothing stays behind for the next step.
    gradients.collect_rows(network.losses(inputs, ("b",)), cut=(network.features,))
    apply(gradients, given)
    (row,) = jacobian(network.losses(inputs, ("b",)), shared)
    torch.testing.assert_close(flat_grads(shared), WEIGHTS[0] * row, **NEAR)


@pytest.mark.parametrize("scope", ["features", "last_shared"])
def test_other_scopes_share_no_memory_either(scope):
    a, b = (nn.Parameter(torch.ones(3)) for _ in range(2))
    features = a + b
    gradients = TaskGradients([a, b], {"a": []}, (), scope, [a])
    gradients.collect_rows({"a": features.square().sum()}, cut=(features,))
    apply(gradients, Given(scope, (1.0,)))
    a.grad.zero_()
    assert b.grad.tolist() == [4.0, 4.0, 4.0]


@pytest.mark.parametrize("scope", ["shared", "features", "last_shared"])
def test_scopes_in_any_loop(scope):
    network, inputs = built(frozen)
    shared, last = learning(network.trunk), learning(network.trunk[2])
    rows = jacobian(network.losses(inputs), shared)
    losses = network.losses(inputs)
    Given(scope).backward(
        losses,
        network.trunk.parameters(),
        features=[network.features],
        last_shared_params=last,
    )
    torch.testing.assert_close(flat_grads(shared), torch.tensor(WEIGHTS).double() @ rows, **NEAR)
    if scope != "shared":
        with pytest.raises(UsageError, match=f"scope '{scope}'"):
            Given(scope).backward(network.losses(inputs), shared)


def test_a_whole_learner_on_its_features():
    batch, found = tiny_batch(), {}
    for scope in ("shared", "features"):
        given = Given(scope)
        learner = tiny_learner([given])
        losses = learner(batch, learner.tasks)
        gradients = learner.task_gradients()
        gradients.collect_rows(losses.balanced, cut=losses.cut)
        gradients.apply(learner.balancing.finisher, learner.context)
        found[scope] = ([p.grad for p in learner.parameters()], given.gramian)
    for one, two in zip(found["shared"][0], found["features"][0], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found["shared"][1], found["features"][1])


def test_a_scope_that_the_backbone_lacks_is_refused():
    learner, inputs = tiny_learner([Given("features")]), tiny_batch(1).inputs
    before = {name: buffer.clone() for name, buffer in learner.named_buffers()}
    check_model(learner, inputs)
    assert learner.model.training and learner.model.backbone.trunk.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in learner.named_buffers())
    learner = tiny_learner([Given("last_shared")])
    with pytest.raises(UsageError, match=r"scope 'last_shared' .*last_shared_parameters"):
        check_model(learner, inputs)
    with pytest.raises(UsageError, match="last_shared_parameters"):
        learner.task_gradients()
    check_model(tiny_learner([]), inputs)


def test_a_backbone_that_cannot_read_the_samples_is_refused():
    with pytest.raises(UsageError, match=r"TinyBackbone cannot read a sample of shape \[5\] \("):
        check_model(tiny_learner([]), torch.zeros(1, 5))


@pytest.mark.parametrize(
    ("backbone", "names"),
    [
        (SegNet(TINY_TASKS, width=1 / 32), "decoder.levels.0.rest.0.0.{weight,bias}"),
        (ResNet(TINY_TASKS, depth=18, width=1 / 32), "layer4.1.conv2.weight"),
        (ResNet(TINY_TASKS, depth=50, width=1 / 32), "layer4.2.conv3.weight"),
        (UNet(TINY_TASKS, width=1 / 32, decoder="shared"), "decoder.levels.0.3.weight"),
        (UNet(TINY_TASKS, width=1 / 32), ""),
    ],
    ids=["segnet", "resnet18", "resnet50", "unet", "unet-per-task"],
)
def test_last_shared_parameters_of_standard_backbones(backbone, names):
    known = {id(p): name for name, p in backbone.named_parameters()}
    found = [known[id(p)] for p in backbone.last_shared_parameters()]
    stem, _, ends = names.partition("{")
    assert found == ([stem + end for end in ends[:-1].split(",")] if names else [])
