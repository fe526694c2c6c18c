"""MLoRE keeps the contract over a pyramid and over maps of one stride, and does what it says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, MultiTaskModel
from mtlcore.standard.heads import PointwiseHead
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract, TinyPyramid
from mtlcore_mlore.backbone import MLoRE
from mtlcore_mlore.experts import Mixture

NAMES = [task.name for task in TINY_TASKS]
KEYS = {task.name: task.key for task in TINY_TASKS}
PYRAMID = partial(TinyPyramid, channels=(4, 5), predicts=True)
SMALL = partial(MLoRE, channels=8, ranks=(1, 2, 3), chosen=2, task_rank=2, grid=(2, 3))


class Plain(Backbone):
    """Maps of one stride, as of two of a transformer's blocks, the last block first."""

    out_channels, strides, input_multiple, main_map = (5, 4), (4, 4), 4, 0

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 4, stride=4)
        self.second = nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        first = self.first(inputs).tanh()
        return Features(shared=(self.second(first).tanh(), first))

    def last_shared_parameters(self):
        return self.second.parameters()


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class TestOverAPyramid(BackboneContract):
    def make(self, tasks):
        return SMALL(tasks, backbone=PYRAMID)


class TestOverMapsOfOneStride(BackboneContract):
    def make(self, tasks):
        return SMALL(tasks, backbone=Plain, renormalise=True)


class ByHand:
    """The authors' network, by torch's functions and the state alone."""

    def __init__(self, backbone: MLoRE, *, chosen: int, renormalise: bool) -> None:
        self.weights = backbone.state_dict()
        self.encoder = backbone.encoder
        self.chosen, self.renormalise = chosen, renormalise
        self.picked: dict[tuple[str, int, int], Tensor] = {}

    def map_of(self, images: Tensor, task: str) -> Tensor:
        key = KEYS[task]
        maps = []
        for level, x in enumerate(self.encoder(images, NAMES).shared):
            here = self.conv(x, f"project.{level}")
            for number in (0, 1):
                here, weights = self.mixture(here, f"mixtures.{level}.{number}", key)
                self.picked[task, level, number] = weights
            maps.append(here)
        scores = self.conv(torch.cat(maps, 1), f"weigh.{key}.0")
        scores = F.gelu(self.norm(scores, f"weigh.{key}.1"))
        shares = self.conv(scores, f"weigh.{key}.3", padding=1).softmax(1)
        total = sum(x * shares[:, level, None] for level, x in enumerate(maps))
        finer = F.interpolate(total, scale_factor=4, mode="bilinear")
        finer = self.conv(finer, f"output.{key}.0", padding=1)
        return F.gelu(self.norm(finer, f"output.{key}.1"))

    def conv(self, x: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], **how)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, scale, shift = (
            self.weights[f"{name}.{part}"].reshape(-1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    def expert(self, x: Tensor, name: str) -> Tensor:
        return self.conv(self.conv(x, f"{name}.reduce", padding=1), f"{name}.expand")

    def mixture(self, x: Tensor, name: str, key: str) -> tuple[Tensor, Tensor]:
        own = f"{name}.tasks.{key}"
        x = self.conv(x, f"{own}.enter")
        router = f"{own}.router"
        places = self.conv(x, f"{router}.reduce").movedim(1, -1)
        places = self.linear(F.gelu(self.layer_norm(places, f"{router}.norm_places")),
                             f"{router}.places").mean((1, 2))  # fmt: skip
        grid = F.adaptive_avg_pool2d(x, (2, 3)).flatten(2)
        summed = self.layer_norm(self.linear(grid, f"{router}.sum")[..., 0], f"{router}.norm_sum")
        summed = self.linear(F.gelu(summed), f"{router}.summed")
        scores = self.linear(torch.cat([places, summed], 1), f"{router}.scores")
        weights = scores[:, :3].softmax(1)
        for row in weights:
            row[row.argsort()[: 3 - self.chosen]] = 0.0
            if self.renormalise:
                row /= row.sum()
        mixed = sum(
            weights[:, number, None, None, None] * self.expert(x, f"{name}.experts.{number}")
            for number in range(3)
        )
        total = self.norm(mixed, f"{own}.norm_mixture")
        total = total + scores[:, 6, None, None, None] * self.expert(x, f"{own}.expert")
        total = total + self.conv(x, f"{name}.shared", padding=1)
        return self.conv(F.gelu(self.norm(total, f"{own}.norm")), f"{own}.leave"), weights


@pytest.mark.parametrize(("chosen", "renormalise"), [(2, False), (1, True), (2, True)])
def test_maps_are_those_of_the_equations(chosen: int, renormalise: bool) -> None:
    images = torch.rand(3, 3, 12, 16, dtype=torch.float64)
    backbone = SMALL(TINY_TASKS, backbone=Plain, chosen=chosen, renormalise=renormalise).double()
    for name, p in backbone.named_parameters():
        if "router" in name:  # images that differ in the experts they get
            nn.init.normal_(p)
    with torch.no_grad():
        backbone.train()(images, NAMES)
        backbone.eval()
        by_hand = ByHand(backbone, chosen=chosen, renormalise=renormalise)
        features = backbone(images, NAMES)
        for task in NAMES:
            (found,) = features.of(task)
            torch.testing.assert_close(found, by_hand.map_of(images, task))
    sets = {tuple((row > 0).tolist()) for weights in by_hand.picked.values() for row in weights}
    assert len(sets) > 1
    assert {sum(one) for one in sets} == {chosen}


def test_training_adds_noise_to_scores_alone() -> None:
    mixture = Mixture(["a"], 8, (1, 2, 3), 2, 2, renormalise=False, grid=(2, 2)).train()
    x = torch.randn(4, 8, 3, 3)
    first, second = mixture(x, "a")[1], mixture(x, "a")[1]
    assert not torch.equal(first, second)
    with torch.no_grad():
        mixture.tasks["a"].router.scores.weight[3:6] = 0.0
        mixture.tasks["a"].router.scores.bias[3:6] = 0.0
    assert torch.equal(mixture(x, "a")[1], mixture(x, "a")[1])
    assert torch.equal(mixture(x, "a")[1], mixture.eval()(x, "a")[1])


def test_nothing_learns_through_the_shared_convolution() -> None:
    mixture = Mixture(["a"], 8, (1, 2), 1, 2, renormalise=False, grid=(2, 2)).eval()
    part = mixture.tasks["a"]
    for layer in (*mixture.experts, part.expert):
        nn.init.zeros_(layer.expand.weight)
        nn.init.zeros_(layer.expand.bias)
    x = torch.randn(1, 8, 3, 3, requires_grad=True)
    found = mixture(x, "a")[0].square().sum()
    for wanted, reached in ((mixture.shared.weight, True), (x, False)):
        (gradient,) = torch.autograd.grad(found, wanted, retain_graph=True)
        assert bool(gradient.any()) is reached


def test_the_term_is_the_variation_of_mean_weights_in_every_mixture() -> None:
    backbone = SMALL(TINY_TASKS, backbone=Plain, load_balancing=0.5)
    seen: dict[int, list[Tensor]] = {}
    mixtures = [m for m in backbone.modules() if isinstance(m, Mixture)]
    for number, mixture in enumerate(mixtures):
        mixture.register_forward_hook(
            lambda _m, _x, found, number=number: seen.setdefault(number, []).append(found[1])
        )
    term = backbone(torch.rand(3, 3, 8, 8), NAMES[:2]).terms["load_balancing"]
    assert [len(seen[number]) for number in range(4)] == [2] * 4  # two levels, two mixtures each
    expected = 0.0
    for weights in seen.values():
        mean = torch.cat(weights).mean(0)
        expected += 0.5 * mean.var().item() / mean.mean().item() ** 2
    assert term.item() == pytest.approx(expected, rel=1e-5)
    assert backbone(torch.rand(3, 3, 8, 8), []).terms == {}
    both = SMALL(TINY_TASKS, backbone=PYRAMID)(torch.rand(2, 3, 8, 8), NAMES)
    assert set(both.terms) == {"size", "load_balancing"}
    assert {task: len(found) for task, found in both.early.items()} == dict.fromkeys(NAMES, 1)


def test_levels_of_a_pyramid_have_one_resolution() -> None:
    backbone = SMALL(TINY_TASKS, backbone=PYRAMID)
    assert (backbone.strides, backbone.input_multiple) == ((2,), 8)
    sizes = []
    for layer in backbone.project:
        layer.register_forward_pre_hook(lambda _m, given: sizes.append(given[0].shape[2:]))
    backbone(torch.rand(2, 3, 16, 24), NAMES)
    assert sizes == [(2, 3), (2, 3)]


def test_initialisation_is_the_published_one() -> None:
    backbone = MLoRE(TINY_TASKS, backbone=Plain, channels=32, ranks=(4, 8), chosen=1)
    for mixture in (m for m in backbone.modules() if isinstance(m, Mixture)):
        for expert in mixture.experts:
            assert not bool(expert.reduce.bias.any()) and not bool(expert.expand.bias.any())
        for part in mixture.tasks.values():
            assert bool(part.expert.reduce.bias.any())
            assert part.router.sum.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not bool(part.router.sum.bias.any())
    for key in KEYS.values():
        assert backbone.output[key][0].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_lone_task_has_all_but_the_encoder() -> None:
    backbone = SMALL(TINY_TASKS[:1], backbone=Plain)
    own = {id(p) for p in backbone.task_parameters("segmentation")}
    shared = {n.split(".")[0] for n, p in backbone.named_parameters() if id(p) not in own}
    assert shared == {"encoder"}
    names = {id(p): name for name, p in backbone.named_parameters()}
    last = [names[id(p)] for p in backbone.last_shared_parameters()]
    assert last == ["encoder.second.weight", "encoder.second.bias"]


def test_the_last_shared_layers_are_in_the_second_mixtures() -> None:
    backbone = SMALL(TINY_TASKS, backbone=Plain)
    names = {id(p): name for name, p in backbone.named_parameters()}
    last = {names[id(p)].rpartition(".")[0] for p in backbone.last_shared_parameters()}
    experts = [f"experts.{number}.expand" for number in range(3)]
    assert last == {f"mixtures.{n}.1.{part}" for n in (0, 1) for part in ("shared", *experts)}


def test_any_size_through_the_model() -> None:
    for encoder in (
        partial(ResNet, depth=18, width=1 / 32, pyramid=True),
        partial(UNet, width=1 / 32, decoder="none", output_stride=2),
    ):
        backbone = SMALL(TINY_TASKS, backbone=encoder)
        info = FeatureInfo.of(backbone)
        heads = {task.name: PointwiseHead(task, info) for task in TINY_TASKS}
        found = MultiTaskModel(TINY_TASKS, backbone, heads)(torch.rand(2, 3, 33, 70), NAMES)
        assert {tuple(x.shape[2:]) for x in found.values()} == {(33, 70)}


class Coarse(Plain):
    """Maps of the stride of 14 pixels."""

    strides, input_multiple = (14, 14), 14


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"backbone.channels: 10 must be a multiple of 4"):
        SMALL(TINY_TASKS, backbone=Plain, channels=10)
    with pytest.raises(UsageError, match=r"backbone.chosen: 4 experts cannot.*of the 3"):
        SMALL(TINY_TASKS, backbone=Plain, chosen=4)
    for lacking in (partial(MLP, inputs=3), partial(ResNet, depth=18, width=1 / 32)):
        with pytest.raises(UsageError, match=r"two levels or more.*pyramid=true"):
            SMALL(TINY_TASKS, backbone=lacking)
    with pytest.raises(UsageError, match=r"have the stride 14.*multiple of 4"):
        SMALL(TINY_TASKS, backbone=Coarse)
    backbone = SMALL(TINY_TASKS, backbone=partial(UNet, width=1 / 32)).eval()
    with pytest.raises(UsageError, match=r"UNet gives tasks maps of their own.*decoder=none"):
        backbone(torch.rand(1, 3, 32, 32), NAMES)
