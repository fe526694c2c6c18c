"""U-Net: published size, decoders per task or shared."""

from __future__ import annotations

import pytest
import torch

from mtlcore.models import count_parameters
from mtlcore.plugins import settings_of
from mtlcore.standard.unet import UNet
from mtlcore.testing import TINY_TASKS, BackboneContract

SMALL = 1 / 16


class TestPerTask(BackboneContract):
    def make(self, tasks):
        return UNet(tasks, width=SMALL)


class TestShared(BackboneContract):
    def make(self, tasks):
        return UNet(tasks, width=SMALL, decoder="shared")


class TestCoarsePerTask(BackboneContract):
    def make(self, tasks):
        return UNet(tasks, width=SMALL, output_stride=4)


class TestCoarseShared(BackboneContract):
    def make(self, tasks):
        return UNet(tasks, width=SMALL, decoder="shared", output_stride=2)


def test_published_size():
    with torch.device("meta"):
        shared = UNet(TINY_TASKS, decoder="shared")
        per_task = UNet(TINY_TASKS)
    assert count_parameters(shared.encoder.parameters()) == 18_847_168
    assert count_parameters(shared.parameters()) == 31_037_568
    assert count_parameters(per_task.parameters()) == 18_847_168 + 3 * 12_190_400
    assert shared.out_channels == per_task.out_channels == (1024, 64)


def test_task_parameters_are_the_decoders():
    network = UNet(TINY_TASKS, width=SMALL)
    for task in TINY_TASKS:
        decoder = network.decoders[task.key]
        assert [*network.task_parameters(task.name)] == [*decoder.parameters()]
    assert not [*UNet(TINY_TASKS, width=SMALL, decoder="shared").task_parameters("depth")]


def test_decoders_are_drawn_apart():
    network = UNet(TINY_TASKS, width=SMALL)
    first, second = (network.decoders[task.key].up[0].weight for task in TINY_TASKS[:2])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("decoder", ["per-task", "shared"])
def test_skipped_maps_reach_the_decoder(decoder):
    """A single pixel shows in the decoded map although the latent map is held."""
    torch.manual_seed(0)
    network = UNet(TINY_TASKS, width=SMALL, decoder=decoder).eval()
    maps = network.encoder(torch.rand(1, 3, 32, 32))
    module = network.decoder or network.decoders[TINY_TASKS[0].key]
    before = module(maps)
    for level in range(4):
        changed = list(maps)
        changed[level] = changed[level] + 1
        assert not torch.allclose(module(changed), before)


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_a_coarser_output_ends_the_decoder_there(stride):
    """Up to that level it is the same network."""
    torch.manual_seed(0)
    whole = UNet(TINY_TASKS, width=SMALL, decoder="shared").eval()
    network = UNet(TINY_TASKS, width=SMALL, decoder="shared", output_stride=stride).eval()
    level = stride.bit_length() - 1
    network.encoder.load_state_dict(whole.encoder.state_dict())
    for number, (up, convs) in enumerate(
        zip(network.decoder.up, network.decoder.levels, strict=True)
    ):
        up.load_state_dict(whole.decoder.up[level + number].state_dict())
        convs.load_state_dict(whole.decoder.levels[level + number].state_dict())
    images = torch.rand(1, 3, 32, 48)
    latent, decoded = network(images, []).shared
    steps = [full for _, full in whole.decoder.upwards(whole.encoder(images))]
    assert torch.equal(decoded, steps[-1 - level])
    assert torch.equal(latent, whole(images, []).shared[0])
    assert (network.strides, network.out_channels) == ((16, stride), (64, 4 * stride))
    alone = UNet(TINY_TASKS, width=SMALL, decoder="none", output_stride=stride)
    assert alone.strides == tuple(s for s in (16, 8, 4, 2) if s >= stride)
    assert [x.shape[2] for x in alone(images, []).shared] == [32 // s for s in alone.strides]


def test_width_must_be_positive():
    with pytest.raises(ValueError, match="width"):
        UNet(TINY_TASKS, width=0.0)


def test_settings_are_explained():
    assert [s.name for s in settings_of(UNet) if s.meaning] == ["width", "decoder", "output_stride"]
