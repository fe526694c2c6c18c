"""The backbone keeps what mtlcore asks, over ResNets and a U-Net, and in both places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mtlcore.models import Backbone
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import BackboneContract
from mtlcore_residual_adapters.backbone import ResidualAdapters

RESNET = partial(ResNet, depth=18, width=1 / 8, pyramid=True)


class TestParallelInAResNet(BackboneContract):
    def make(self, tasks: Sequence[Task]) -> Backbone:
        return ResidualAdapters(tasks, encoder=RESNET)


class TestSeriesInAFrozenResNet(BackboneContract):
    def make(self, tasks: Sequence[Task]) -> Backbone:
        encoder = partial(ResNet, depth=50, width=1 / 8)
        return ResidualAdapters(tasks, encoder=encoder, placement="series", frozen=True)


class TestParallelInAUNetWithADecoderPerTask(BackboneContract):
    """The latent map is in the list twice: it is the task's, as all maps are."""

    def make(self, tasks: Sequence[Task]) -> Backbone:
        return ResidualAdapters(tasks, encoder=partial(UNet, width=1 / 16))
