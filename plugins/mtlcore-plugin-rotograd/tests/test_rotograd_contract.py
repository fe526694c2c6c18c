"""Both halves keep what mtlcore asks of a backbone and of a balancer of Gramians."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mtlcore.models import Backbone
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.segnet import SegNet
from mtlcore.tasks import Task
from mtlcore.testing import BackboneContract, GramianBalancerContract
from mtlcore_rotograd.backbone import RotatedBackbone
from mtlcore_rotograd.balancer import OneLength


class TestRotatedSegNet(BackboneContract):
    def make(self, tasks: Sequence[Task]) -> Backbone:
        return RotatedBackbone(tasks, backbone=partial(SegNet, width=0.03125))


class TestRotatedPyramid(BackboneContract):
    def make(self, tasks: Sequence[Task]) -> Backbone:
        return RotatedBackbone(tasks, backbone=partial(ResNet, width=0.0625))


class TestOneLength(GramianBalancerContract):
    def make(self) -> OneLength:
        return OneLength()


class TestEarlyReference(GramianBalancerContract):
    def make(self) -> OneLength:
        return OneLength(burn_in=1)
