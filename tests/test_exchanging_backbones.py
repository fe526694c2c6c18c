"""Networks side by side: who runs when, what is exchanged, what is left when something fails."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtlcore.errors import UsageError
from mtlcore.features import EarlyPrediction, Features
from mtlcore.models import Backbone, ExchangePoint, ExchangingBackbone, as_it_was, as_map
from mtlcore.models.tracing import traced
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.segnet import SegNet
from mtlcore.standard.unet import UNet
from mtlcore.testing import TINY_TASKS, BackboneContract, TinyBackbone

NAMES = [task.name for task in TINY_TASKS]


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Staged(Backbone):
    """Three convolutions with batch norm; maps can be exchanged after two of them."""

    out_channels, strides = (4,), (1,)

    def __init__(self, tasks) -> None:
        super().__init__()
        self.keys = {task.name: task.key for task in tasks}
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.2))
            for c in (3, 4, 4)
        )
        self.guess = nn.Conv2d(4, tasks[0].channels, 1)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        maps = [inputs]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        if not self.training:
            return Features(shared=(maps[-1],))
        early = {task: [EarlyPrediction(self.guess(maps[1]))] for task in tasks}
        return Features(shared=(maps[-1],), early=early, terms={"size": maps[2].abs().mean()})

    def exchange_points(self):
        return [
            ExchangePoint(module=stage, channels=4, parameters=(*more, *stage.parameters()))
            for stage, more in zip(self.stages[:2], ((), (*self.guess.parameters(),)), strict=True)
        ]


class Weighted(ExchangingBackbone):
    """Each task receives a weighted sum of all maps, with a weight per pair."""

    def __init__(self, tasks, backbone, exchange_at=None, own=0.5) -> None:
        super().__init__(tasks, backbone, exchange_at)
        number = len(tasks)
        rest = (1 - own) / max(1, number - 1)
        rows = own * torch.eye(number) + rest * (1 - torch.eye(number))
        self.rows = nn.ModuleList(
            nn.ParameterDict({t.key: rows[n].clone() for n, t in enumerate(tasks)})
            for _ in self.points
        )

    def exchange(self, number, maps, wanted):
        row = {task: self.rows[number][self._keys[task]] for task in wanted}
        return {
            task: sum(w * x for w, x in zip(row[task], maps.values(), strict=True))
            for task in wanted
        }

    def exchange_parameters(self, number, task):
        return [self.rows[number][self._keys[task]]]


class TestExchange(BackboneContract):
    def make(self, tasks):
        return Weighted(tasks, Staged)


class TestExchangeOfVectors(BackboneContract):
    def make(self, tasks):
        return Weighted(tasks, partial(MLP, inputs=5, hidden=(6, 4)))

    def inputs(self, backbone, batch=2):
        return torch.rand(batch, 5)


ENCODERS = (
    (partial(SegNet, width=1 / 32), 10),
    (partial(UNet, width=1 / 32, output_stride=2), 8),
    (partial(UNet, width=1 / 32, decoder="shared"), 9),
    (partial(UNet, width=1 / 32, decoder="none"), 5),
    (partial(ResNet, depth=18, width=1 / 16, pyramid=True), 5),
)


@pytest.mark.parametrize(("encoder", "number"), [*ENCODERS, (Staged, 2)])
def test_without_an_exchange_it_is_separate_networks(encoder, number: int) -> None:
    """Bit for bit, gradients, statistics and random numbers included."""
    together = Weighted(TINY_TASKS, encoder, own=1.0)
    assert len(together.points) == number
    alone = copy.deepcopy(together)
    inputs = torch.rand(2, 3, 32, 64)
    torch.manual_seed(1)
    found = together(inputs, NAMES)
    if encoder is not Staged:  # whose stages draw random numbers in another order
        torch.manual_seed(1)
        for task in TINY_TASKS:
            maps = alone.networks[task.key](inputs, [task.name]).of(task.name)
            assert all(map(torch.equal, maps, found.of(task.name)))
            torch.stack([x.square().mean() for x in maps]).sum().backward()
        every = [x.square().mean() for task in NAMES for x in found.of(task)]
        torch.stack(every).sum().backward()
        for one, other in zip(
            together.networks.parameters(), alone.networks.parameters(), strict=True
        ):
            assert torch.equal(one.grad, other.grad)
    assert {n for n, b in together.networks.named_buffers() if "tracked" in n and b != 1} == set()


def test_maps_are_those_of_the_equations() -> None:
    """Each stage runs on what was mixed; what comes after the last exchange, on the last mix."""
    network = Weighted(TINY_TASKS, Staged, own=0.7).double().eval()
    inputs = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    maps = {task.name: inputs for task in TINY_TASKS}
    for stage in range(3):
        maps = {t.name: network.networks[t.key].stages[stage](maps[t.name]) for t in TINY_TASKS}
        if stage < 2:
            mean = sum(maps.values())
            maps = {t: 0.55 * x + 0.15 * mean for t, x in maps.items()}
    found = network(inputs, NAMES)
    for task in NAMES:
        torch.testing.assert_close(found.of(task), (maps[task],), rtol=1e-6, atol=1e-7)


def test_it_runs_as_its_caller_does() -> None:
    """Gradients, autocast and inference mode hold in the networks as around them."""
    network, inputs = Weighted(TINY_TASKS, Staged), torch.rand(2, 3, 8, 8)
    network.eval()
    assert network(inputs, NAMES).of("depth")[0].requires_grad
    with torch.no_grad():
        assert not network(inputs, NAMES).of("depth")[0].requires_grad
    with torch.inference_mode():
        assert network(inputs, NAMES).of("depth")[0].is_inference()
    seen: list[torch.dtype] = []
    stage = network.networks[TINY_TASKS[0].key].stages[2][0]
    stage.register_forward_hook(lambda _m, _i, x: seen.append(x.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(inputs, NAMES)
    network(inputs, NAMES)
    assert seen == [torch.bfloat16, torch.float32]


def test_modes_are_the_callers_and_are_left_as_they_were() -> None:
    """Such as a counter's, which sees every operation once, and that of a default device."""
    network, inputs = Weighted(TINY_TASKS, Staged).eval(), torch.rand(2, 3, 8, 8)
    devices: list[str] = []
    network.networks[TINY_TASKS[0].key].stages[1].register_forward_hook(
        lambda *_: devices.append(torch.zeros(1).device.type)
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(inputs, NAMES)
        with torch.device("meta"):
            network(inputs, NAMES)
    # Of each network three convolutions of 3 x 3, from 3, 4 and 4 channels to 4, at 64 places.
    assert counter.get_total_flops() == 2 * len(NAMES) * 2 * 9 * (3 + 4 + 4) * 4 * 2 * 64
    assert devices == ["cpu", "meta"]
    assert torch.zeros(1).device.type == "cpu"


def test_threads_of_torch_are_the_callers() -> None:
    network, seen = Weighted(TINY_TASKS, Staged), list[int]()
    network.networks[TINY_TASKS[1].key].stages[0].register_forward_hook(
        lambda *_: seen.append(torch.get_num_threads())
    )
    torch.set_num_threads(2)
    network(torch.rand(2, 3, 8, 8), NAMES)
    torch.set_num_threads(1)
    network(torch.rand(2, 3, 8, 8), NAMES)
    assert seen == [2, 1]


@pytest.mark.parametrize("encoder", [Staged, partial(UNet, width=0.03125)])
def test_repeated_calls_compute_what_threads_do(encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that torch.export follows run anew for every map."""
    backbone = Weighted(TINY_TASKS, encoder).eval()
    images = torch.randn(2, 3, 32, 48)
    expected = backbone(images, NAMES[1:])
    monkeypatch.setattr("mtlcore.models.lockstep.is_exporting", lambda: True)
    found = backbone(images, NAMES[1:])
    assert found.per_task.keys() == expected.per_task.keys()
    for task, maps in expected.per_task.items():
        assert all(map(torch.equal, found.per_task[task], maps))
    assert not any(module._forward_hooks for module in backbone.modules())


def test_repeated_calls_notice_points_that_are_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtlcore.models.lockstep.is_exporting", lambda: True)
    with pytest.raises(RuntimeError, match="was called out of order"):
        Weighted(TINY_TASKS, Unordered).eval()(torch.randn(1, 3, 8, 8), NAMES)


def test_after_the_last_exchange_only_what_is_asked_for_runs() -> None:
    network = Weighted(TINY_TASKS, Staged, exchange_at=(0,))
    first, *others = TINY_TASKS
    features = network(torch.rand(2, 3, 8, 8), [first.name])
    assert set(features.per_task) == {first.name} == set(features.early)
    assert set(features.terms) == {f"size of {first.name}"}
    for task in others:
        counts = [int(s[1].num_batches_tracked) for s in network.networks[task.key].stages]
        assert counts == [1, 0, 0]
    own = {id(p) for p in network.task_parameters(first.name)}
    mine = network.networks[first.key]
    later = {id(p) for p in (*mine.stages[1:].parameters(), *mine.guess.parameters())}
    assert own == later | {id(network.rows[0][first.key])}
    assert [id(p) for p in network.last_shared_parameters()] == [
        id(network.networks[task.key].stages[0][0].weight) for task in TINY_TASKS
    ]


class Failing(Staged):
    """Fails after the first exchange."""

    def forward(self, inputs, tasks):
        self.stages[0](inputs)
        raise ArithmeticError("an overflow of the second stage")


class Unordered(Staged):
    def exchange_points(self):
        return [*reversed(super().exchange_points())]


class Lying(Staged):
    """Names a part that is called by nobody."""

    def __init__(self, tasks) -> None:
        super().__init__(tasks)
        self.unused = nn.Identity()

    def exchange_points(self):
        last = ExchangePoint(module=self.unused, channels=4, parameters=())
        return [*super().exchange_points(), last]


class Named(nn.Module):
    def forward(self, x):
        return {"map": x}


class Pair(Staged):
    """Its first stage returns no tensor."""

    def __init__(self, tasks) -> None:
        super().__init__(tasks)
        self.stages[0].append(Named())


class Twice(Staged):
    def forward(self, inputs, tasks):
        self.stages[1](self.stages[0](inputs))
        return super().forward(inputs, tasks)


@pytest.mark.parametrize(
    ("backbone", "error", "message"),
    [
        (Failing, ArithmeticError, "an overflow"),
        (Unordered, RuntimeError, "called out of order"),
        (Lying, RuntimeError, "ended before its exchange point 2"),
        (Pair, TypeError, "Sequential returned no map"),
        (Twice, RuntimeError, "called out of order"),
    ],
)
def test_what_fails_in_a_network_is_raised_and_nothing_stays_behind(
    backbone, error, message: str
) -> None:
    before = threading.active_count()
    network = Weighted(TINY_TASKS, backbone)
    with pytest.raises(error, match=message):
        network(torch.rand(2, 3, 8, 8), NAMES)
    assert threading.active_count() == before
    assert not any(m._forward_hooks for n in network.networks.values() for m in n.stages[1:])


def test_what_fails_in_an_exchange_ends_all_networks() -> None:
    class Interrupted(Weighted):
        def exchange(self, number, maps, wanted):
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        Interrupted(TINY_TASKS, Staged)(torch.rand(2, 3, 8, 8), NAMES)
    assert threading.active_count() == before


def test_places_are_checked() -> None:
    assert len(Weighted(TINY_TASKS, Staged, exchange_at=(-1, 1)).points) == 1
    for places in ((), (2,), (0, -3)):
        with pytest.raises(UsageError, match=r"exchange_at: .* Staged has the stages 0 to 1"):
            Weighted(TINY_TASKS, Staged, exchange_at=places)
    with pytest.raises(UsageError, match=r"model\.backbone\.backbone: TinyBackbone does not say"):
        Weighted(TINY_TASKS, TinyBackbone)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("NCHW", (2, 5, 3, 4)), ("NHWC", (2, 3, 4, 5)), ("NLC", (2, 12, 5)), ("NC", (2, 5))],
)
def test_layouts_become_maps_and_come_back(layout: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    assert as_map(x, layout).shape[:2] == (2, 5)
    assert as_map(x, layout).dim() == 4
    assert torch.equal(as_it_was(as_map(x, layout), layout), x)


def test_the_weight_of_a_point_is_the_last_with_its_channels() -> None:
    points = ResNet(TINY_TASKS, depth=18, width=1 / 16).exchange_points()
    assert [tuple(p.weight.shape) for p in points[:2]] == [(4, 3, 7, 7), (4, 4, 3, 3)]
    network = MLP(TINY_TASKS, inputs=5, hidden=(6, 4))
    assert [p.weight is layer.weight for p, layer in zip(
        network.exchange_points(), [*network.layers][::2], strict=True
    )] == [True, True]  # fmt: skip
    assert ExchangePoint(module=nn.ReLU(), channels=3, parameters=()).weight is None


def test_points_of_another_librarys_network_are_found_under_other_parameters() -> None:
    """A bilevel optimizer runs networks with tensors in the place of their parameters."""

    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self) -> ExchangePoint:
            return traces[0].point(self.inner)

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with torch.no_grad(), traced(network, {"1": 4}) as traces:
        network(torch.rand(1, 3, 6, 9))
    adapted = {f"inner.{name}": 2 * p for name, p in network.named_parameters()}
    point = torch.func.functional_call(Outer(network), adapted, ())
    assert [id(p) for p in point.parameters] == [id(p) for p in adapted.values()]
