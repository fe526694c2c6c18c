"""The networks of this plugin over the maps of other backbones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mtlcore.errors import UsageError
from mtlcore.features import EarlyPrediction, Features
from mtlcore.models import Backbone, Transition, count_parameters
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract, TinyBackbone, tiny_learner
from mtlcore_atinet.atinet import ATINet
from mtlcore_atinet.mtan import MTAN
from mtlcore_atinet.padnet import PADNet
from mtlcore_atinet.single import SegNetPerTask

NAMES = [task.name for task in TINY_TASKS]
UNET = partial(UNet, width=1 / 32, decoder="none")
# Eight channels at least: with fewer, gradients of 1x1 convolutions with stride 2 in channels-last
# order write beyond their memory where torch 2.13 computes them by AVX2.
RESNET = partial(ResNet, depth=18, width=1 / 8, pyramid=True)
ONE_MAP = partial(ResNet, depth=18, width=1 / 8, output_stride=8)
Makes = Callable[..., Backbone]


class Lively(Backbone):
    """Two maps, a phase in the middle, an early prediction, a term, and a count of steps."""

    out_channels, strides, input_multiple, main_map = (6, 4), (4, 2), 4, 0

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.keys = {task.name: task.key for task in tasks}
        self.early = nn.ModuleDict({t.key: nn.Conv2d(6, t.channels, 1) for t in tasks})
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        fine = self.fine(inputs).tanh()
        coarse = self.coarse(fine).tanh()
        if not self.training:
            return Features(shared=(coarse, fine))
        early = {
            task: [EarlyPrediction(self.early[self.keys[task]](coarse), 0.5)] for task in tasks
        }
        return Features(shared=(coarse, fine), early=early, terms={"size": coarse.abs().mean()})

    def task_parameters(self, task: str):
        return self.early[self.keys[task]].parameters()

    def last_shared_parameters(self):
        return self.coarse.parameters()

    def layer_groups(self):
        return [list(self.fine.parameters()), list(self.coarse.parameters())]

    def facts(self):
        return {"weights": "none"}

    def at_progress(self, fraction: float) -> Transition | None:
        if fraction < 0.3 or self.begun:
            return None
        self.begun.fill_(True)
        nn.init.normal_(self.coarse.weight)
        return Transition(reset=("coarse.weight",), reset_balancer=True)

    def after_step(self, context) -> None:
        self.steps += 1


class TestMTANOverUNet(BackboneContract):
    def make(self, tasks):
        return MTAN(tasks, encoder=UNET)


class TestMTANOverResNet(BackboneContract):
    def make(self, tasks):
        return MTAN(tasks, encoder=RESNET)


class TestMTANOverOneMap(BackboneContract):
    def make(self, tasks):
        return MTAN(tasks, encoder=ONE_MAP)


class TestATINetOverUNet(BackboneContract):
    def make(self, tasks):
        return ATINet(tasks, encoder=UNET)


class TestATINetOverResNet(BackboneContract):
    def make(self, tasks):
        return ATINet(tasks, encoder=RESNET, reset="released")


class TestATINetOverOneMap(BackboneContract):
    def make(self, tasks):
        return ATINet(tasks, encoder=ONE_MAP)


class TestPADNetOverUNet(BackboneContract):
    def make(self, tasks):
        return PADNet(tasks, encoder=UNET)


class TestPADNetOverResNet(BackboneContract):
    def make(self, tasks):
        return PADNet(tasks, encoder=RESNET)


class TestPADNetOverOneMap(BackboneContract):
    def make(self, tasks):
        return PADNet(tasks, encoder=ONE_MAP)


class TestMTANOverWhatChanges(BackboneContract):
    def make(self, tasks):
        return MTAN(tasks, encoder=Lively)


class TestATINetOverWhatChanges(BackboneContract):
    def make(self, tasks):
        return ATINet(tasks, encoder=Lively)


class TestPADNetOverWhatChanges(BackboneContract):
    def make(self, tasks):
        return PADNet(tasks, encoder=Lively)


class TestNetworksPerTask(BackboneContract):
    def make(self, tasks):
        return SegNetPerTask(tasks, encoder=partial(UNet, width=1 / 32))


class TestChangingNetworksPerTask(BackboneContract):
    def make(self, tasks):
        return SegNetPerTask(tasks, encoder=Lively)


class TestSegNetInside(BackboneContract):
    """The default has the last shared layer and no cut either."""

    def make(self, tasks):
        return ATINet(tasks, width=1 / 32)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def test_the_attended_maps_are_those_of_the_equations() -> None:
    """The encoder's map times a mask, down; the decoder's times a mask, up, level by level."""
    network = MTAN(TINY_TASKS, encoder=Lively).double().eval()
    images = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    coarse, fine = network.encoder(images, NAMES).shared
    attention = network.attention
    masks = attention.masks[TINY_TASKS[0].key]
    a = attention.encoder_convs[0](masks.encoder[0](fine) * fine)
    a = nn.functional.max_pool2d(a, 2)
    a = attention.encoder_convs[1](masks.encoder[1](torch.cat([coarse, a], 1)) * coarse)
    unet = network.decoder.unet
    joined = torch.cat([fine, unet.up[0](coarse)], 1)
    decoded = unet.levels[0](joined)
    b = masks.decoder[1](torch.cat([coarse, attention.decoder_convs[1](a)], 1)) * coarse
    b = nn.functional.interpolate(b, scale_factor=2, mode="bilinear", align_corners=True)
    b = masks.decoder[0](torch.cat([joined, attention.decoder_convs[0](b)], 1)) * decoded
    latent, attended = network(images, NAMES).of(NAMES[0])
    torch.testing.assert_close(latent, coarse)
    assert attended.shape == (2, 4, 4, 6)
    torch.testing.assert_close(attended, b)


def test_atinet_is_mtan_before_and_decodes_the_exchanged_map_afterwards() -> None:
    torch.manual_seed(3)
    mtan = MTAN(TINY_TASKS, encoder=RESNET)
    torch.manual_seed(3)
    network = ATINet(TINY_TASKS, encoder=RESNET, reset="none")
    images = torch.rand(2, 3, 32, 64)

    def same() -> bool:
        pairs = [(network(images, NAMES).of(t)[-1], mtan(images, NAMES).of(t)[-1]) for t in NAMES]
        return all(torch.equal(one, other) for one, other in pairs)

    assert same()
    assert network.at_progress(0.5) == Transition()
    assert not same()
    with torch.no_grad():
        latent = network.eval().distillation(network.encoder(images, NAMES).shared[0])
    assert latent.shape == (2, 64, 1, 2)


@pytest.mark.parametrize("encoder", [UNET, RESNET, ONE_MAP])
def test_over_any_encoder_the_exchange_reaches_every_task(encoder: Makes) -> None:
    network = ATINet(TINY_TASKS, encoder=encoder, distil_from=0).eval()
    features = network(torch.rand(2, 3, 32, 64), NAMES)
    for task in NAMES:
        loss = features.of(task)[-1].square().sum()
        named = dict(network.distillation.named_parameters())
        found = torch.autograd.grad(loss, [*named.values()], retain_graph=True, allow_unused=True)
        assert [n for n, g in zip(named, found, strict=True) if g is None or not g.any()] == []


def test_stacks_are_parts_of_the_latent_map() -> None:
    network = ATINet(TINY_TASKS, encoder=partial(UNet, width=1 / 8, decoder="none"))
    stack = network.distillation.read[TINY_TASKS[0].key]
    assert [unit[0].out_channels for unit in stack] == [64, 32, 16]
    assert network.out_channels == (128, 8)


def test_the_trunk_over_unet_is_unet() -> None:
    """What is attended to has the parameters and the weights of U-Net with a shared decoder."""
    torch.manual_seed(5)
    unet = UNet(TINY_TASKS, width=1 / 16, decoder="shared").eval()
    torch.manual_seed(5)
    network = MTAN(TINY_TASKS, encoder=partial(UNet, width=1 / 16, decoder="none")).eval()
    trunk = [*network.encoder.parameters(), *network.decoder.parameters()]
    assert count_parameters(trunk) == count_parameters(unet.parameters())
    assert all(map(torch.equal, trunk, unet.parameters()))
    images = torch.rand(2, 3, 32, 32)
    encoded = network.encode(images, NAMES)
    output = network.decoder(encoded.latent, encoded.skipped).output
    torch.testing.assert_close(output, unet(images, NAMES).shared[-1])


@pytest.mark.parametrize("make", [MTAN, ATINet, PADNet])
def test_what_the_encoder_does_goes_on(make: Makes) -> None:
    network = make(TINY_TASKS, encoder=Lively).train()
    assert network.facts() == {"weights": "none"}
    assert [len(group) for group in network.layer_groups()] == [2, 2]
    features = network(torch.rand(2, 3, 8, 8), NAMES[:2])
    assert set(features.early) == set(NAMES[:2])
    assert set(features.terms) == {"size"}
    network.after_step(tiny_learner().context)
    assert int(network.encoder.steps) == 1
    change = network.at_progress(0.4)
    assert change == Transition(reset=("encoder.coarse.weight",), reset_balancer=True)
    assert network.at_progress(0.4) is None


def test_two_phases_at_once_are_one_transition() -> None:
    network = ATINet(TINY_TASKS, encoder=Lively, reset="released")
    change = network.at_progress(0.5)
    assert change is not None
    assert change.reset_heads
    assert change.reset_balancer
    assert {name.split(".")[0] for name in change.reset} == {"encoder", "attention"}


def test_networks_per_task_keep_their_own_terms_and_layers() -> None:
    network = SegNetPerTask(TINY_TASKS, encoder=Lively).train()
    features = network(torch.rand(2, 3, 8, 8), NAMES)
    assert set(features.terms) == {f"size of {name}" for name in NAMES}
    assert [len(group) for group in network.layer_groups()] == [6, 6]
    change = network.at_progress(1.0)
    assert change is not None
    assert change.reset == tuple(f"networks.{t.key}.coarse.weight" for t in TINY_TASKS)


@pytest.mark.parametrize("make", [MTAN, ATINet, PADNet])
def test_the_last_shared_layer_is_the_decoders_or_the_encoders(make: Makes) -> None:
    network = make(TINY_TASKS, encoder=UNET)
    names = {id(p): name for name, p in network.named_parameters()}
    last = [names[id(p)] for p in network.last_shared_parameters()]
    assert last
    assert all(".levels.0.3." in name for name in last), last
    alone = make(TINY_TASKS, encoder=ONE_MAP)
    names = {id(p): name for name, p in alone.named_parameters()}
    last = [names[id(p)] for p in alone.last_shared_parameters()]
    assert last == ["encoder.layer4.1.conv2.weight"]


@pytest.mark.parametrize("make", [MTAN, ATINet, PADNet, SegNetPerTask])
def test_a_width_beside_an_encoder_is_refused(make: Makes) -> None:
    with pytest.raises(UsageError, match=r"width: 0.5 is SegNet's.*encoder.width"):
        make(TINY_TASKS, width=0.5, encoder=UNET)


class Odd(TinyBackbone):
    strides = (3, 2)


@pytest.mark.parametrize("make", [MTAN, ATINet, PADNet])
def test_encoders_without_fitting_maps_are_refused(make: Makes) -> None:
    with pytest.raises(UsageError, match=r"encoder: MLP gives no maps"):
        make(TINY_TASKS, encoder=partial(MLP, inputs=3))
    with pytest.raises(UsageError, match=r"multiple of the next finer.*Odd are \[2, 3\]"):
        make(TINY_TASKS, encoder=Odd)
    network = make(TINY_TASKS, encoder=partial(UNet, width=1 / 32))
    with pytest.raises(UsageError, match=r"UNet gives tasks maps of their own.*decoder=none"):
        network(torch.rand(1, 3, 32, 32), NAMES)
