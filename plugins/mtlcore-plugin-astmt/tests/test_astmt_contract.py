"""Backbone and adversary keep what mtlcore asks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mtlcore.features import FeatureInfo
from mtlcore.losses import CrossTaskLoss
from mtlcore.models import Backbone
from mtlcore.standard.resnet import ResNet
from mtlcore.tasks import Task
from mtlcore.testing import BackboneContract, CrossTaskLossContract
from mtlcore_astmt.adversary import GradientAdversary
from mtlcore_astmt.backbone import ASTMT


class TestASTMT(BackboneContract):
    def make(self, tasks: Sequence[Task]) -> Backbone:
        encoder = partial(ResNet, depth=18, width=1 / 8, pyramid=True)
        return ASTMT(tasks, encoder=encoder, channels=16)


class TestASTMTOverBottlenecks(BackboneContract):
    """At stride 8; of channels fewer than the reduction, one is left."""

    def make(self, tasks: Sequence[Task]) -> Backbone:
        encoder = partial(ResNet, depth=50, width=1 / 8, output_stride=8, pyramid=True)
        return ASTMT(tasks, encoder=encoder, channels=8, reduction=64)


class TestAdversary(CrossTaskLossContract):
    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> CrossTaskLoss:
        return GradientAdversary(tasks, features)


class TestAdversaryOfPlaces(CrossTaskLossContract):
    """Whose neighbours are seen as well, of a map coarser than the image."""

    features = FeatureInfo((6, 5), (4, 2), 0)

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> CrossTaskLoss:
        return GradientAdversary(tasks, features, kernel=3, rate=1.0)
