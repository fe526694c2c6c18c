"""The networks against their definitions, written out step by step with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.models import Backbone
from mtlcore.standard.segnet import SegNet
from mtlcore.tasks import Task
from mtlcore_atinet.atinet import ATINet
from mtlcore_atinet.mtan import MTAN
from mtlcore_atinet.padnet import PADNet

NAMES = ("red", "green", "blue")
TASKS = [Task(name=name, kind="depth", channels=1) for name in NAMES]
LEVELS = range(5)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Weights:
    """Layers of a network by their names, in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    def __call__(self, name: str, maps: Tensor) -> Tensor:
        return self.network.get_submodule(name)(maps)

    def unit(self, name: str, maps: Tensor) -> Tensor:
        """Convolution, batch norm, ReLU."""
        return torch.relu(self(f"{name}.1", self(f"{name}.0", maps)))

    def mask(self, name: str, maps: Tensor) -> Tensor:
        hidden = self.unit(f"{name}.0", maps)
        return torch.sigmoid(self(f"{name}.2", self(f"{name}.1", hidden)))

    def level(self, name: str, maps: Tensor) -> tuple[Tensor, Tensor]:
        first = self.unit(f"{name}.first", maps)
        full = first
        for index in range(len(self.network.get_submodule(f"{name}.rest"))):
            full = self.unit(f"{name}.rest.{index}", full)
        return first, full

    def encode(self, maps: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        firsts, fulls, places = [], [], []
        for level in LEVELS:
            first, full = self.level(f"encoder.levels.{level}", maps)
            maps, indices = F.max_pool2d(full, 2, 2, return_indices=True)
            firsts.append(first)
            fulls.append(full)
            places.append(indices)
        return firsts, fulls, places, maps

    def decode(
        self, name: str, maps: Tensor, places: list[Tensor]
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        unpooled, fulls = {}, {}
        for level in reversed(LEVELS):
            unpooled[level] = F.max_unpool2d(maps, places[level], 2, 2)
            maps = fulls[level] = self.level(f"{name}.levels.{level}", unpooled[level])[1]
        return unpooled, fulls

    def attended(self, task: str, inputs: Tensor) -> Tensor:
        u, p, places, latent = self.encode(inputs)
        unpooled, d2 = self.decode("decoder", latent, places)
        masks = f"attention.masks.task_{task}"
        maps = self.mask(f"{masks}.encoder.0", u[0]) * p[0]
        maps = F.max_pool2d(self.unit("attention.encoder_convs.0", maps), 2)
        for level in LEVELS[1:]:
            mask = self.mask(f"{masks}.encoder.{level}", torch.cat([u[level], maps], 1))
            maps = self.unit(f"attention.encoder_convs.{level}", mask * p[level])
            maps = F.max_pool2d(maps, 2)
        for level in reversed(LEVELS):
            size = (2 * maps.shape[2], 2 * maps.shape[3])
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
            maps = self.unit(f"attention.decoder_convs.{level}", maps)
            mask = self.mask(f"{masks}.decoder.{level}", torch.cat([unpooled[level], maps], 1))
            maps = mask * d2[level]
        return maps

    def gated(self, gates: str, task: str, maps: dict[str, Tensor]) -> Tensor:
        for source in set(NAMES) - {task}:
            gate = f"{gates}.into.task_{task}.task_{source}"
            message = self(f"{gate}.message", maps[source])
            weight = torch.sigmoid(self(f"{gate}.attention", maps[source]))
            maps = maps | {task: maps[task] + message * weight}
        return maps[task]

    def stack(self, name: str, maps: Tensor) -> Tensor:
        for index in range(3):
            maps = self.unit(f"{name}.{index}", maps)
        return maps


def images() -> Tensor:
    return torch.randn(2, 3, 64, 96)


def settled(network: Backbone) -> Backbone:
    """Running statistics of its own maps, without which maps fade from layer to layer."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network(images(), NAMES)
    return network.eval()


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_segnet() -> None:
    network, inputs = settled(SegNet(TASKS, width=1 / 16)), images()
    weights = Weights(network)
    *_, places, latent = weights.encode(inputs)
    decoded = weights.decode("decoder", latent, places)[1][0]
    found = network(inputs, NAMES).shared
    assert_same(found[0], latent)
    assert_same(found[1], decoded)


def test_mtan() -> None:
    network, inputs = settled(MTAN(TASKS, width=1 / 16)), images()
    features = network(inputs, NAMES)
    for task in NAMES:
        assert_same(features.of(task)[1], Weights(network).attended(task, inputs))


def test_distillation_of_atinet() -> None:
    network = settled(ATINet(TASKS, width=1 / 16, distil_from=0))
    weights, latent = Weights(network), torch.rand(2, 32, 2, 3)
    maps = {task: weights.stack(f"distillation.read.task_{task}", latent) for task in NAMES}
    written = [
        weights.stack(
            f"distillation.write.task_{task}", weights.gated("distillation.gates", task, maps)
        )
        for task in NAMES
    ]
    assert_same(network.distillation(latent), torch.stack(written).mean(dim=0))


def test_padnet() -> None:
    network, inputs = settled(PADNet(TASKS, width=1 / 16)), images()
    weights = Weights(network)
    *_, places, latent = weights.encode(inputs)
    maps = {t: weights.decode(f"decoders.task_{t}", latent, places)[1][0] for t in NAMES}
    features = network(inputs, NAMES)
    for task in NAMES:
        assert_same(features.of(task)[1], weights.gated("gates", task, maps))
