"""Encoders of timm inside the networks of mtlcore-plugin-atinet."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from mtlcore.testing import TINY_TASKS, BackboneContract
from mtlcore_timm.backbone import TimmBackbone

atinet = pytest.importorskip(
    "mtlcore_atinet.atinet", reason="mtlcore-plugin-atinet is not installed"
)
STAGES = partial(TimmBackbone, model="test_resnet")
TOKENS = partial(TimmBackbone, model="test_vit", channels=8)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class TestStages(BackboneContract):
    def make(self, tasks):
        return atinet.ATINet(tasks, encoder=STAGES)


class TestTokens(BackboneContract):
    def make(self, tasks):
        return atinet.ATINet(tasks, encoder=TOKENS)


def test_maps_and_layers_are_those_of_the_encoder() -> None:
    inside = STAGES(TINY_TASKS)
    network = atinet.ATINet(TINY_TASKS, encoder=STAGES)
    assert network.out_channels == (inside.out_channels[0], inside.out_channels[-1])
    assert network.strides == (inside.strides[0], inside.strides[-1])
    assert network.input_multiple == inside.input_multiple
    assert network.facts() == inside.facts()
    assert [len(layer) for layer in network.layer_groups()] == [
        len(layer) for layer in inside.layer_groups()
    ]
