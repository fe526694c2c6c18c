"""Both networks: what every backbone keeps, their equations, and their published sizes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mtlcore.errors import UsageError
from mtlcore.features import Features
from mtlcore.models import Backbone, ExchangePoint, count_parameters
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.segnet import SegNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract, TinyBackbone, tiny_learner
from mtlcore_crossstitch.crossstitch import CrossStitch
from mtlcore_crossstitch.sluice import Sluice

NAMES = [task.name for task in TINY_TASKS]
UNET = partial(UNet, width=1 / 32, decoder="none")
VECTORS = partial(MLP, inputs=5, hidden=(6, 4))


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class TestCrossStitch(BackboneContract):
    def make(self, tasks):
        return CrossStitch(tasks, backbone=VECTORS)

    def inputs(self, backbone, batch=2):
        return torch.rand(batch, 5)


class TestSluice(BackboneContract):
    def make(self, tasks):
        return Sluice(tasks, backbone=UNET, exchange_at=(0, 3), unit_rate=10.0)


class Tokens(Backbone):
    """Two layers on tokens (B, L, C), and a map made of the second one's."""

    out_channels, strides, input_multiple = (4,), (4,), 4

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 4, stride=4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        x = self.patch(inputs)
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = tokens + block(tokens).tanh()
        return Features(shared=(tokens.transpose(1, 2).reshape(x.shape),))

    def exchange_points(self) -> list[ExchangePoint]:
        first = (*self.patch.parameters(), *self.blocks[0].parameters())
        return [
            ExchangePoint(module=self.blocks[0], channels=4, parameters=first, layout="NLC"),
            ExchangePoint(
                module=self.blocks[1],
                channels=4,
                parameters=(*self.blocks[1].parameters(),),
                layout="NLC",
            ),
        ]


class TestTokens(BackboneContract):
    def make(self, tasks):
        return Sluice(tasks, backbone=Tokens, skips=False)


def apart(make, **settings):
    """Either network, begun so that no task sees another one's maps."""
    if make is Sluice:
        settings |= {"last": 1.0}
    return make(TINY_TASKS, own=1.0, **settings)


@pytest.mark.parametrize("make", [CrossStitch, Sluice])
@pytest.mark.parametrize("backbone", [UNET, partial(SegNet, width=1 / 32)])
def test_identity_weights_are_separate_networks_bit_for_bit(make, backbone) -> None:
    network = apart(make, backbone=backbone)
    inputs = torch.rand(2, 3, 32, 64)
    found = network(inputs, NAMES)
    for task in TINY_TASKS:
        alone = network.networks[task.key](inputs, [task.name]).of(task.name)
        assert all(map(torch.equal, alone, found.of(task.name)))


@pytest.mark.parametrize("make", [CrossStitch, Sluice])
def test_the_order_of_tasks_does_not_matter(make) -> None:
    """At first the weights treat all pairs of tasks alike."""
    network = make(TINY_TASKS, backbone=VECTORS).double().eval()
    turned = make(TINY_TASKS[::-1], backbone=VECTORS).double().eval()
    turned.networks.load_state_dict(network.networks.state_dict())
    if make is Sluice:
        turned.skips.load_state_dict(network.skips.state_dict())
    inputs = torch.rand(3, 5, dtype=torch.float64)
    one, other = network(inputs, NAMES), turned(inputs, NAMES)
    for task in NAMES:
        torch.testing.assert_close(one.of(task), other.of(task), rtol=1e-6, atol=1e-8)


def test_equal_weights_give_all_tasks_the_same_map() -> None:
    network = CrossStitch(TINY_TASKS, backbone=VECTORS, own=1 / 3).double()
    features = network(torch.rand(3, 5, dtype=torch.float64), NAMES)
    for task in NAMES[1:]:
        torch.testing.assert_close(features.of(NAMES[0]), features.of(task))
    assert not torch.equal(*(n.layers[0].weight for n in network.wrapped()[:2]))


@pytest.mark.parametrize("tasks", [TINY_TASKS[:1], TINY_TASKS[:2], TINY_TASKS])
def test_weights_begin_as_a_convex_combination(tasks) -> None:
    number = len(tasks)
    cross = CrossStitch(tasks, backbone=VECTORS, own=0.8)
    sluice = Sluice(tasks, backbone=VECTORS, own=0.8, last=0.7)
    for place, task in enumerate(tasks):
        row = cross.units[0].row(task.name)
        assert row.shape == (number, 6)
        expected = torch.full((number,), 0.2 / max(1, number - 1))
        expected[place] = 0.8 if number > 1 else 1.0
        torch.testing.assert_close(row, expected[:, None].expand(-1, 6))
        wide = sluice.units[0].row(task.name)
        assert wide.shape == (2, 2 * number)
        torch.testing.assert_close(wide.sum(1), torch.ones(2))
        assert wide[0, 2 * place] == wide[1, 2 * place + 1] == wide.max() == 0.8
        torch.testing.assert_close(sluice.skips[task.key].weights, torch.tensor([0.3, 0.7]))


@pytest.mark.parametrize("per", ["channel", "layer"])
def test_cross_stitch_is_the_equation(per) -> None:
    network = CrossStitch(TINY_TASKS, backbone=VECTORS, per=per).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    inputs = torch.rand(3, 5, dtype=torch.float64)
    maps = dict.fromkeys(NAMES, inputs)
    for number in range(2):
        layers = {t.name: network.networks[t.key].layers for t in TINY_TASKS}
        made = [layers[t][2 * number](maps[t]).relu() for t in NAMES]
        a = torch.stack([network.units[number].row(t) for t in NAMES])
        assert a.shape == (3, 3, made[0].shape[1] if per == "channel" else 1)
        mixed = torch.einsum("ijc,jbc->ibc", a.expand(-1, -1, made[0].shape[1]), torch.stack(made))
        maps = dict(zip(NAMES, mixed, strict=True))
    found = network(inputs, NAMES)
    for task in NAMES:
        torch.testing.assert_close(found.of(task), (maps[task],))


def test_sluice_is_the_equation() -> None:
    network = Sluice(TINY_TASKS, backbone=VECTORS, orthogonality=0.5).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    inputs = torch.rand(3, 5, dtype=torch.float64)
    maps, kept = dict.fromkeys(NAMES, inputs), []
    for number, width in enumerate((6, 4)):
        layers = {t.name: network.networks[t.key].layers for t in TINY_TASKS}
        made = [layers[t][2 * number](maps[t]).relu() for t in NAMES]
        blocks = torch.stack(made).reshape(3, 3, 2, width // 2).permute(0, 2, 1, 3).flatten(0, 1)
        a = torch.cat([network.units[number].row(t) for t in NAMES])
        mixed = torch.einsum("ij,jbc->ibc", a, blocks).unflatten(0, (3, 2))
        maps = {t: x.permute(1, 0, 2).flatten(1) for t, x in zip(NAMES, mixed, strict=True)}
        kept.append(maps)
    found = network(inputs, NAMES)
    for task in TINY_TASKS:
        skip = network.skips[task.key]
        first = kept[0][task.name] @ skip.projections[0].weight[:, :, 0, 0].T
        expected = skip.weights[0] * first + skip.weights[1] * kept[1][task.name]
        torch.testing.assert_close(found.of(task.name), (expected,))
    overlap = torch.zeros((), dtype=torch.float64)
    for inner in network.wrapped():
        for weight in (inner.layers[0].weight, inner.layers[2].weight):
            half = len(weight) // 2
            overlap = overlap + (weight[:half] @ weight[half:].T).square().sum()
    torch.testing.assert_close(found.terms["orthogonality"], 0.5 * overlap)
    assert "orthogonality" not in network.eval()(inputs, NAMES).terms


def test_orthogonal_subspaces_have_no_term() -> None:
    network = Sluice(TINY_TASKS, backbone=UNET, exchange_at=(1, 2))
    assert network.overlap() > 0
    with torch.no_grad():
        for inner in network.wrapped():
            for point in inner.exchange_points():
                nn.init.orthogonal_(point.weight)
    assert network.overlap() < 1e-10


def test_earlier_maps_are_brought_to_the_size_of_the_last() -> None:
    """What heads read has the size of their map, whichever stages are mixed into it."""
    network = Sluice(TINY_TASKS, backbone=UNET, own=1.0, exchange_at=(0, 3)).eval()
    inputs = torch.rand(2, 3, 32, 64)
    skip = network.skips[TINY_TASKS[0].key]
    inner = network.networks[TINY_TASKS[0].key]
    with torch.no_grad():
        nn.init.eye_(skip.projections[0].weight[:, :, 0, 0])
        skip.weights.copy_(torch.tensor([0.5, 2.0]))
        deepest, *others = network(inputs, NAMES[:1]).of(NAMES[0])
        maps = inner(inputs, NAMES[:1]).of(NAMES[0])
    small = nn.functional.interpolate(maps[-1], (2, 4), mode="bilinear")
    expected = 2 * maps[0]
    expected[:, :2] += 0.5 * small
    torch.testing.assert_close(deepest, expected)
    assert all(map(torch.equal, others, maps[1:]))


@pytest.mark.parametrize(
    ("depth", "tasks", "units"),
    [(18, 2, 3_840), (18, 5, 24_000), (50, 2, 15_360)],
)
def test_published_sizes(depth, tasks: int, units: int) -> None:
    """Of the code of Vandenhende et al., TPAMI 2021: a unit after each stage of a ResNet."""
    several = [Task(name=f"t{n}", kind="depth", channels=1) for n in range(tasks)]
    backbone = partial(ResNet, depth=depth)
    with torch.device("meta"):
        network = CrossStitch(several, backbone=backbone, exchange_at=(1, 2, 3, 4))
        one = count_parameters(backbone(several).parameters())
    assert count_parameters(network.units.parameters()) == units
    assert count_parameters(network.parameters()) == tasks * one + units
    assert one == {18: 11_176_512, 50: 23_508_032}[depth]


def test_a_sluice_network_has_few_numbers_more() -> None:
    """Per stage (2 T)^2 weights, per task L of stages, and the projections of other widths."""
    network = Sluice(TINY_TASKS, backbone=VECTORS)
    inner = 3 * count_parameters(MLP(TINY_TASKS, inputs=5, hidden=(6, 4)).parameters())
    assert count_parameters(network.parameters()) == inner + 2 * 36 + 3 * (2 + 6 * 4)


@pytest.mark.parametrize("make", [CrossStitch, Sluice])
def test_weights_of_maps_learn_at_their_own_rate(make) -> None:
    network = make(TINY_TASKS, backbone=UNET, unit_rate=100.0)
    (group,) = network.parameter_groups()
    assert group["lr_scale"] == 100
    weights = [p for n, p in network.named_parameters() if ".rows." in n or n.endswith("weights")]
    assert {id(p) for p in group["params"]} == {id(p) for p in weights}
    assert list(make(TINY_TASKS, backbone=UNET, unit_rate=1.0).parameter_groups()) == []
    learner = tiny_learner(backbone=lambda tasks: make(tasks, backbone=UNET, unit_rate=100.0))
    assert [g.get("lr_scale") for g in learner.parameter_groups()] == [None, 100]


@pytest.mark.parametrize("make", [CrossStitch, Sluice])
def test_only_the_last_weights_are_a_tasks_own(make) -> None:
    network = make(TINY_TASKS, backbone=UNET, exchange_at=(1, 2))
    own = {id(p) for p in network.task_parameters("depth")}
    inner = network.networks[TINY_TASKS[1].key].encoder.levels
    expected = [network.units[1].row("depth"), *inner[3:].parameters()]
    if make is Sluice:
        expected += network.skips[TINY_TASKS[1].key].parameters()
    assert own == {id(p) for p in expected}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subspaces": 3}, "subspaces: 3 does not divide the 2 channels"),
        ({"backbone": Tokens, "subspaces": 1}, "skips: tokens"),
        ({"backbone": TinyBackbone}, "TinyBackbone does not say"),
        ({"exchange_at": (7,)}, "stages 0 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sluice(TINY_TASKS, **{"backbone": UNET, **settings})


def test_subspaces_need_filters_to_be_kept_apart() -> None:
    class Bare(Tokens):
        def exchange_points(self) -> list[ExchangePoint]:
            first, last = super().exchange_points()
            bias = ExchangePoint(
                module=last.module, channels=4, parameters=last.parameters[1:], layout="NLC"
            )
            return [first, bias]

    Sluice(TINY_TASKS, backbone=Bare, skips=False, orthogonality=0.0)
    with pytest.raises(UsageError, match="orthogonality: one of the maps"):
        Sluice(TINY_TASKS, backbone=Bare, skips=False)


@pytest.mark.parametrize("make", [CrossStitch, Sluice])
def test_maps_keep_their_precision(make) -> None:
    network = make(TINY_TASKS, backbone=VECTORS)
    with torch.autocast("cpu", torch.bfloat16):
        features = network(torch.rand(2, 5), NAMES)
    assert features.of("depth")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("make", [CrossStitch, Sluice])
def test_it_runs_with_other_tensors_in_place_of_its_parameters(make) -> None:
    """As bilevel optimizers do: gradients reach these, not the parameters."""
    network = make(TINY_TASKS, backbone=VECTORS)
    others = {n: (2 * p).detach().requires_grad_() for n, p in network.named_parameters()}
    features = torch.func.functional_call(network, others, (torch.rand(3, 5), NAMES))
    terms = [*features.terms.values(), *(features.of(t)[0].square().sum() for t in NAMES)]
    found = torch.autograd.grad(torch.stack(terms).sum(), [*others.values()])
    assert all(bool(gradient.isfinite().all()) for gradient in found)
