"""NDDR-CNN: what every backbone keeps, its equation, its first weights and published sizes."""

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
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract, TinyBackbone, tiny_learner
from mtlcore_nddr.nddr import NDDR

NAMES = [task.name for task in TINY_TASKS]
KEYS = {task.name: task.key for task in TINY_TASKS}
UNET = partial(UNet, width=1 / 32, decoder="none")
VECTORS = partial(MLP, inputs=5, hidden=(6, 4))


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class TestNDDR(BackboneContract):
    def make(self, tasks):
        return NDDR(tasks, backbone=UNET, exchange_at=(0, 3), shortcut=True)


class Channels(Backbone):
    """Two layers on maps (B, H, W, C) of tokens, the first of which keeps them in a row."""

    out_channels, strides, input_multiple = (4,), (4,), 4

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 4, stride=4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        x = self.patch(inputs).permute(0, 2, 3, 1)
        tokens = self.blocks[0](x.flatten(1, 2)).tanh()
        maps = self.blocks[1](tokens.unflatten(1, x.shape[1:3]))
        return Features(shared=(maps.permute(0, 3, 1, 2),))

    def exchange_points(self) -> list[ExchangePoint]:
        first = (*self.patch.parameters(), *self.blocks[0].parameters())
        last = (*self.blocks[1].parameters(),)
        return [
            ExchangePoint(module=self.blocks[0], channels=4, parameters=first, layout="NLC"),
            ExchangePoint(module=self.blocks[1], channels=4, parameters=last, layout="NHWC"),
        ]


class TestOtherLayouts(BackboneContract):
    def make(self, tasks):
        return NDDR(tasks, backbone=Channels, activation="none")


def random(network: nn.Module) -> None:
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)


@pytest.mark.parametrize("shortcut", [False, True])
def test_it_is_the_equation(shortcut: bool) -> None:
    network = NDDR(TINY_TASKS, backbone=VECTORS, shortcut=shortcut).double().eval()
    random(network)
    inputs = torch.rand(3, 5, dtype=torch.float64)

    def layer(part, beside: Tensor) -> Tensor:
        weight, norm = part.reduce.weight[:, :, 0, 0], part.norm
        scale = norm.weight / (norm.running_var + 1e-3).sqrt()
        return ((beside @ weight.T - norm.running_mean) * scale + norm.bias).relu()

    maps, kept = dict.fromkeys(NAMES, inputs), []
    for number in range(2):
        made = {t: network.networks[KEYS[t]].layers[2 * number](maps[t]).relu() for t in NAMES}
        beside = torch.cat([*made.values()], 1)
        maps = {t: layer(network.layers[number][KEYS[t]], beside) for t in NAMES}
        kept.append(maps)
    found = network(inputs, NAMES)
    for task in NAMES:
        expected = maps[task]
        if shortcut:
            beside = torch.cat([kept[0][task], maps[task]], 1)
            expected = layer(network.shortcuts[KEYS[task]], beside)
        torch.testing.assert_close(found.of(task), (expected,))


@pytest.mark.parametrize("tasks", [TINY_TASKS[:1], TINY_TASKS[:2], TINY_TASKS])
def test_layers_begin_as_weighted_sums_of_maps(tasks) -> None:
    """Diagonals of .9 and .1 for two tasks; in evaluation, all but what batch norm divides by."""
    network = NDDR(tasks, backbone=VECTORS).eval()
    number = len(tasks)
    for place, task in enumerate(tasks):
        weight = network.layers[0][task.key].reduce.weight
        assert weight.shape == (6, 6 * number, 1, 1)
        for other, block in enumerate(weight[:, :, 0, 0].split(6, 1)):
            own = 0.9 if number > 1 else 1.0
            expected = own if other == place else 0.1 / (number - 1)
            torch.testing.assert_close(block, expected * torch.eye(6))
    maps = {task.name: torch.rand(2, 6) for task in tasks}
    fused = network.exchange(0, maps, [tasks[0].name])[tasks[0].name]
    mean = sum(x * (0.1 / max(1, number - 1)) for x in [*maps.values()][1:])
    expected = (maps[tasks[0].name] * (0.9 if number > 1 else 1.0) + mean) / 1.001**0.5
    torch.testing.assert_close(fused, expected)


def test_without_weights_of_others_it_begins_as_separate_networks() -> None:
    """Of maps that are outputs of ReLU only the division of batch norm is left to see."""
    network = NDDR(TINY_TASKS, backbone=VECTORS, own=1.0).double().eval()
    for layers in network.layers:
        for layer in layers.values():
            layer.norm.running_var.fill_(1 - 1e-3)
    inputs = torch.rand(3, 5, dtype=torch.float64)
    found = network(inputs, NAMES)
    for task in NAMES:
        alone = network.networks[KEYS[task]](inputs, [task]).of(task)
        torch.testing.assert_close(found.of(task), alone, rtol=1e-6, atol=1e-8)


def test_the_order_of_tasks_does_not_matter() -> None:
    network = NDDR(TINY_TASKS, backbone=VECTORS, shortcut=True).double()
    turned = NDDR(TINY_TASKS[::-1], backbone=VECTORS, shortcut=True).double()
    turned.networks.load_state_dict(network.networks.state_dict())
    turned.shortcuts.load_state_dict(network.shortcuts.state_dict())
    inputs = torch.rand(8, 5, dtype=torch.float64)
    one, other = network(inputs, NAMES), turned(inputs, NAMES)
    for task in NAMES:
        torch.testing.assert_close(one.of(task), other.of(task), rtol=1e-5, atol=1e-7)


def test_a_shortcut_reads_maps_of_the_size_of_the_last() -> None:
    network = NDDR(TINY_TASKS, backbone=UNET, exchange_at=(0, 3), shortcut=True).eval()
    assert network.shortcuts[KEYS["depth"]].reduce.in_channels == 2 + 32
    seen: list[Tensor] = []
    network.shortcuts[KEYS["depth"]].register_forward_hook(lambda _m, i, _o: seen.append(i[0]))
    network.layers[0][KEYS["depth"]].register_forward_hook(lambda _m, _i, o: seen.append(o))
    deepest, *_ = network(torch.rand(2, 3, 32, 64), ["depth"]).of("depth")
    fused, beside = seen
    small = nn.functional.interpolate(fused, (2, 4), mode="bilinear")
    torch.testing.assert_close(beside[:, :2], small)
    assert deepest.shape == (2, 32, 2, 4)
    assert bool((deepest >= 0).all())


@pytest.mark.parametrize(
    ("depth", "tasks", "layers"),
    [(18, 2, 1_413_120), (18, 5, 8_816_640), (50, 2, 22_314_240)],
)
def test_published_sizes(depth: int, tasks: int, layers: int) -> None:
    """Of the code of Vandenhende et al., TPAMI 2021: after the stem and each stage."""
    several = [Task(name=f"t{n}", kind="depth", channels=1) for n in range(tasks)]
    with torch.device("meta"):
        network = NDDR(several, backbone=partial(ResNet, depth=depth))
    one = {18: 11_176_512, 50: 23_508_032}[depth]
    assert count_parameters(network.layers.parameters()) == layers
    assert count_parameters(network.parameters()) == tasks * one + layers


def test_layers_learn_at_their_own_rate() -> None:
    def make(tasks: Sequence[Task], rate: float = 100.0) -> NDDR:
        return NDDR(tasks, backbone=UNET, shortcut=True, layer_rate=rate)

    network = make(TINY_TASKS)
    (group,) = network.parameter_groups()
    inside = {id(p) for p in network.networks.parameters()}
    assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()} - inside
    assert list(make(TINY_TASKS, 1.0).parameter_groups()) == []
    groups = tiny_learner(backbone=make).parameter_groups()
    assert [g.get("lr_scale") for g in groups] == [None, 100]


def test_only_the_last_layers_are_a_tasks_own() -> None:
    network = NDDR(TINY_TASKS, backbone=UNET, exchange_at=(1, 2), shortcut=True)
    own = {id(p) for p in network.task_parameters("depth")}
    key = KEYS["depth"]
    parts = (
        network.layers[1][key], network.shortcuts[key], network.networks[key].encoder.levels[3:]
    )  # fmt: skip
    assert own == {id(p) for part in parts for p in part.parameters()}


def test_statistics_of_other_tasks_are_left_alone() -> None:
    network = NDDR(TINY_TASKS, backbone=VECTORS)
    network(torch.rand(4, 5), ["depth"])
    counts = {n: int(b) for n, b in network.named_buffers() if n.endswith("tracked")}
    for name, count in counts.items():
        assert count == (name.startswith("layers.0.") or KEYS["depth"] in name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": Channels, "shortcut": True}, "shortcut: tokens"),
        ({"backbone": TinyBackbone}, "TinyBackbone does not say"),
        ({"exchange_at": (7,)}, "stages 0 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NDDR(TINY_TASKS, **{"backbone": UNET, **settings})
