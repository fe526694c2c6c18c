"""Numbers of parameters are those of the authors' code over ViT-B, five tasks of PASCAL-Context.

The encoder is not built: its size is timm's, and the rest depends on its channels alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, MultiTaskModel, count_parameters
from mtlcore.standard.heads import PointwiseHead
from mtlcore.tasks import Task
from mtlcore_mlore.backbone import MLoRE

# The authors' backbone, whose ViT-B has a class token's position, and no class token.
WHOLE, VIT = 248_867_422, 86_433_792
# What it has besides, and nothing reads: two classifiers of routes, a projection per task.
NEVER_READ = 2 * (320 * 5 + 5) + 5 * (2560 * 640 + 640)
# The convolution and the norm of the authors' heads are part of the backbone here.
OF_HEADS = 5 * (9 * 640 * 640 + 640 + 2 * 640)
# Saliency has two classes in the authors' code.
CLASSES = (21, 7, 2, 1, 3)


class Maps(Backbone):
    """Announces four maps of ViT-B."""

    out_channels, strides, input_multiple, main_map = (768,) * 4, (16,) * 4, 16, 0

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()

    def forward(self, inputs: torch.Tensor, tasks: Sequence[str]) -> Features:
        raise NotImplementedError


def size(module: nn.Module) -> int:
    return count_parameters(module.parameters())


def test_the_published_model_and_its_parts() -> None:
    tasks = [Task(name=f"task{n}", kind="segmentation", channels=c) for n, c in enumerate(CLASSES)]
    with torch.device("meta"):
        backbone = MLoRE(tasks, backbone=Maps)
        info = FeatureInfo.of(backbone)
        model = MultiTaskModel(tasks, backbone, {t.name: PointwiseHead(t, info) for t in tasks})
    assert size(backbone) == WHOLE - VIT - NEVER_READ + OF_HEADS
    assert size(model) - size(backbone) == 34 * 641
    assert [size(block) for block in backbone.mixtures[3]] == [17_993_720, 17_993_720]
    mixture = backbone.mixtures[0][0]
    assert size(mixture.experts) == 6_922_680
    assert size(mixture.shared) == 3_687_040
    assert [size(part) for part in mixture.tasks.values()] == [1_476_800] * 5
    assert [size(part.router) for part in mixture.tasks.values()] == [243_456] * 5
