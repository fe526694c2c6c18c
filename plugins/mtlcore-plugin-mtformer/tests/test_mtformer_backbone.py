"""MTFormer keeps the contract over a pyramid, a lone map and a lone task, and does what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, MultiTaskModel
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract, HeadContract, TinyPyramid
from mtlcore_mtformer import swin
from mtlcore_mtformer.backbone import MTFormer
from mtlcore_mtformer.head import MTFormerHead
from mtlcore_mtformer.swin import CrossTaskBlock, SwinBlock, Windows

NAMES = [task.name for task in TINY_TASKS]
KEYS = {task.name: task.key for task in TINY_TASKS}
PYRAMID = partial(TinyPyramid, channels=(3, 4, 5), predicts=True)
SMALL = partial(MTFormer, channels=8, heads=2, window=3, stride=4)


class OneMap(Backbone):
    """A lone map."""

    out_channels, strides, input_multiple, main_map = (5,), (4,), 4, 0

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 4, stride=4)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        return Features(shared=(self.layer(inputs).tanh(),))

    def last_shared_parameters(self):
        return self.layer.parameters()


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class TestOverAPyramid(BackboneContract):
    def make(self, tasks):
        return SMALL(tasks, backbone=PYRAMID)


class TestOverALoneMap(BackboneContract):
    """Where it is the encoder that is cut nowhere else."""

    def make(self, tasks):
        return SMALL(tasks, backbone=OneMap, window=2)


class TestHead(HeadContract):
    features = (FeatureInfo((8,), (2,)), FeatureInfo((3, 6), (4, 2)))

    def make(self, task, features):
        return MTFormerHead(task, features)


def moved(module: nn.Module) -> nn.Module:
    """In float64, with attention that is not the same everywhere."""
    for p in module.double().parameters():
        nn.init.normal_(p, std=0.5)
    return module.eval()


class ByLoops:
    """Blocks by loops over places that know no windows, from the state alone."""

    def __init__(self, module: nn.Module, heads: int, side: int) -> None:
        self.weights = module.state_dict()
        self.heads, self.side = heads, side

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        scaled = (x - mean) / (variance + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def perceptron(self, x: Tensor, name: str) -> Tensor:
        return self.linear(F.gelu(self.linear(x, f"{name}.0")), f"{name}.2")

    def attended(
        self, source: Tensor, values: Tensor, name: str, shift: int, sources: int
    ) -> Tensor:
        """(H, W, C) twice -> (H, W, C), place by place."""
        height, width, channels = values.shape
        size = channels // self.heads
        queries, keys = self.linear(source, f"{name}.query_key").split(channels, -1)
        v = self.linear(values, f"{name}.value")
        offsets = self.weights[f"{name}.offsets"]
        places = [(y, x) for y in range(height) for x in range(width)]

        def window(place: tuple[int, int]) -> tuple[int, int]:
            return math.floor((place[0] - shift) / self.side), math.floor(
                (place[1] - shift) / self.side
            )

        found = torch.zeros_like(values)
        for here in places:
            seen = [there for there in places if window(there) == window(here)]
            for head in range(self.heads):
                part = slice(head * size, (head + 1) * size)
                scores = []
                for there in seen:
                    product = (queries[here][part] * keys[there][part]).sum()
                    down, across = here[0] - there[0], here[1] - there[1]
                    row = (down + self.side - 1) * (2 * self.side - 1) + across + self.side - 1
                    scores.append(product / math.sqrt(sources * size) + offsets[row, head])
                for weight, there in zip(torch.stack(scores).softmax(0), seen, strict=True):
                    found[here][part] += weight * v[there][part]
        return self.linear(found, f"{name}.output")

    def swin(self, maps: Tensor, name: str, shift: int) -> Tensor:
        x = self.norm(maps, f"{name}norm_attention")
        maps = maps + self.attended(x, x, f"{name}attention", shift, 1)
        return maps + self.perceptron(
            self.norm(maps, f"{name}norm_perceptron"), f"{name}perceptron"
        )

    def cross(self, maps: Tensor, others: Sequence[Tensor], name: str, shift: int) -> Tensor:
        own, *theirs = (self.norm(x, f"{name}norm_attention") for x in (maps, *others))
        count = 1 + len(theirs)
        received = [self.attended(x, own, f"{name}attention", shift, count) for x in (own, *theirs)]
        parts = [self.perceptron(x, f"{name}parts.{n}") for n, x in enumerate(received)]
        maps = maps + self.perceptron(torch.cat(parts, -1), f"{name}merge") + received[0]
        return maps + self.perceptron(
            self.norm(maps, f"{name}norm_perceptron"), f"{name}perceptron"
        )


# Whole windows; padded windows; less than a window.
SIZES = [(6, 3), (5, 7), (2, 4)]


def windows(size: tuple[int, int], shifted: bool) -> Windows:
    return Windows(*size, 3, shifted=shifted, device=torch.device("cpu"))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_block_is_the_loop_over_places(size: tuple[int, int], shifted: bool) -> None:
    block = moved(SwinBlock(6, 2, 3))
    maps = torch.randn(2, *size, 6, dtype=torch.float64)
    by_loops = ByLoops(block, 2, 3)
    expected = torch.stack([by_loops.swin(x, "", int(shifted)) for x in maps])
    torch.testing.assert_close(block(maps, windows(size, shifted)), expected)


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_attention_of_a_task_is_the_loop_over_places_and_tasks(
    size: tuple[int, int], shifted: bool, tasks: int
) -> None:
    block = moved(CrossTaskBlock(6, 2, 3, tasks))
    maps = torch.randn(tasks, 2, *size, 6, dtype=torch.float64)
    by_loops = ByLoops(block, 2, 3)
    expected = torch.stack(
        [by_loops.cross(maps[0, n], [*maps[1:, n]], "", int(shifted)) for n in range(2)]
    )
    torch.testing.assert_close(block(maps[0], maps[1:], windows(size, shifted)), expected)


def test_it_is_the_tasks_values_that_are_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another task only queries and keys are read: scores that are all alike hide it."""
    block = moved(CrossTaskBlock(6, 2, 3, 2))
    for p in (block.attention.query_key.weight, block.attention.query_key.bias):
        nn.init.zeros_(p)
    maps, one, other = torch.randn(3, 1, 4, 4, 6, dtype=torch.float64)
    cut = windows((4, 4), False)
    torch.testing.assert_close(block(maps, one[None], cut), block(maps, other[None], cut))


@pytest.mark.parametrize("shifted", [False, True])
def test_padding_leaves_no_trace(shifted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    block = moved(CrossTaskBlock(6, 2, 3, 2))
    maps = torch.randn(2, 1, 5, 7, 6, dtype=torch.float64)
    found = block(maps[0], maps[1:], windows((5, 7), shifted))
    pad, seen = F.pad, []

    def padded(x: Tensor, sides: Sequence[int]) -> Tensor:
        seen.append(tuple(sides))
        return pad(x, sides, value=100.0)

    monkeypatch.setattr(swin.F, "pad", padded)
    assert torch.equal(block(maps[0], maps[1:], windows((5, 7), shifted)), found)
    assert seen == [(0, 0, 0, 2, 0, 1)]


def test_cut_and_joined_maps_are_as_they_were() -> None:
    maps = torch.randn(2, 5, 7, 3)
    for shifted in (False, True):
        cut = windows((5, 7), shifted)
        assert cut.cut(maps).shape == (2, 2 * 3, 9, 3)
        assert torch.equal(cut.join(cut.cut(maps)), maps)
    assert torch.equal(windows((3, 6), False).cut(maps[:, :3, :6])[:, 1, 5], maps[:, 1, 5])


def test_maps_are_those_of_the_equations() -> None:
    """Over a pyramid, whose finest map is finer than what is read."""
    backbone = moved(SMALL(TINY_TASKS, backbone=PYRAMID, channels=6))
    images = torch.rand(2, 3, 24, 16, dtype=torch.float64)
    by_loops = ByLoops(backbone, 2, 3)
    with torch.no_grad():
        features = backbone(images, NAMES)
        coarse, middle, _ = backbone.encoder(images, NAMES).shared
        coarse, middle = (
            by_loops.norm(x.movedim(1, -1), f"norms.{n}").movedim(-1, 1)
            for n, x in enumerate((coarse, middle))
        )
        coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear")
        weight, bias = (by_loops.weights[f"join.{name}"] for name in ("weight", "bias"))
        joined = F.conv2d(torch.cat([coarse, middle], 1), weight, bias)
        for n in range(2):
            shared = _pair(by_loops, joined[n].movedim(0, -1), "shared")
            own = {task: _pair(by_loops, shared, f"own.{KEYS[task]}") for task in NAMES}
            torch.testing.assert_close(features.cut[0][:, n], torch.stack([*own.values()]))
            for task in NAMES:
                x = own[task]
                others = [own[other] for other in NAMES if other != task]
                for number in (0, 1):
                    name = f"cross.{KEYS[task]}.pair.{number}."
                    x = by_loops.cross(x, others, name, number)
                x = by_loops.norm(x, f"cross.{KEYS[task]}.norm")
                (found,) = features.of(task)
                torch.testing.assert_close(found[n], x.movedim(-1, 0))


def _pair(by_loops: ByLoops, maps: Tensor, name: str) -> Tensor:
    for number in (0, 1):
        maps = by_loops.swin(maps, f"{name}.pair.{number}.", number)
    return by_loops.norm(maps, f"{name}.norm")


def test_what_the_encoder_predicts_stays_and_there_is_no_cut_then() -> None:
    images = torch.rand(2, 3, 16, 16)
    features = SMALL(TINY_TASKS, backbone=PYRAMID)(images, NAMES)
    assert {task: len(found) for task, found in features.early.items()} == dict.fromkeys(NAMES, 1)
    assert set(features.terms) == {"size"}
    assert features.cut == ()
    assert len(SMALL(TINY_TASKS, backbone=OneMap)(images, NAMES).cut) == 1


def test_initialisation_is_that_of_swin() -> None:
    backbone = MTFormer(TINY_TASKS, backbone=PYRAMID, channels=64, stride=4)
    for part in (backbone.shared, backbone.own, backbone.cross):
        for name, module in part.named_modules():
            if isinstance(module, nn.Linear):
                assert not bool(module.bias.any()), name
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.15), name
            if isinstance(module, swin.WindowAttention):
                assert module.offsets.std().item() == pytest.approx(0.02, rel=0.15)


def test_a_lone_task_has_all_but_the_encoder() -> None:
    backbone = SMALL(TINY_TASKS[:1], backbone=OneMap)
    own = {id(p) for p in backbone.task_parameters("segmentation")}
    shared = {n.split(".")[0] for n, p in backbone.named_parameters() if id(p) not in own}
    assert shared == {"encoder"}
    names = {id(p): name for name, p in backbone.named_parameters()}
    last = [names[id(p)] for p in backbone.last_shared_parameters()]
    assert last == ["encoder.layer.weight", "encoder.layer.bias"]
    (found,) = backbone(torch.rand(2, 3, 16, 16), ["segmentation"]).of("segmentation")
    assert found.shape == (2, 8, 4, 4)


def test_the_last_shared_layers_are_those_of_the_tasks_features() -> None:
    backbone = SMALL(TINY_TASKS, backbone=OneMap)
    names = {id(p): name for name, p in backbone.named_parameters()}
    last = {names[id(p)].rpartition(".")[0] for p in backbone.last_shared_parameters()}
    assert last == {f"own.{key}.pair.1.perceptron.2" for key in KEYS.values()}


def test_any_size_through_the_model() -> None:
    for encoder in (
        partial(ResNet, depth=18, width=1 / 32, pyramid=True),
        partial(UNet, width=1 / 32, decoder="none", output_stride=2),
    ):
        backbone = MTFormer(TINY_TASKS, backbone=encoder, channels=8)
        info = FeatureInfo.of(backbone)
        heads = {task.name: MTFormerHead(task, info) for task in TINY_TASKS}
        found = MultiTaskModel(TINY_TASKS, backbone, heads)(torch.rand(2, 3, 33, 70), NAMES)
        assert {tuple(x.shape[2:]) for x in found.values()} == {(33, 70)}


def test_more_tasks_than_channels() -> None:
    tasks = [Task(name=f"task{n}", kind="depth", channels=1) for n in range(6)]
    backbone = SMALL(tasks, backbone=OneMap, channels=4)
    found = backbone(torch.rand(1, 3, 16, 16), ["task5"])
    assert found.of("task5")[0].shape == (1, 4, 4, 4)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"channels: 10 must be a multiple of the 4"):
        MTFormer(TINY_TASKS, backbone=OneMap, channels=10)
    for lacking in (partial(MLP, inputs=3), OneMap):
        with pytest.raises(UsageError, match=r"reads those of 8 .*pyramid=true"):
            MTFormer(TINY_TASKS, backbone=lacking)
    backbone = SMALL(TINY_TASKS, backbone=partial(UNet, width=1 / 32)).eval()
    with pytest.raises(UsageError, match=r"UNet gives tasks maps of their own.*decoder=none"):
        backbone(torch.rand(1, 3, 32, 32), NAMES)
    with pytest.raises(UsageError, match=r"'scene' has one label per sample"):
        MTFormerHead(Task(name="scene", kind="classification", channels=2), FeatureInfo((8,), (2,)))
