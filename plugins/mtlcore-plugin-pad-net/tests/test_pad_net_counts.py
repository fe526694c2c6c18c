"""Numbers of parameters are those of the code of Vandenhende et al. (2021), over HRNet-W18.

The encoder is not built: its size is timm's, and the rest depends on its channels alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, MultiTaskModel, count_parameters
from mtlcore.standard.heads import PointwiseHead
from mtlcore.tasks import Task
from mtlcore_pad_net.backbone import PADNet
from mtlcore_pad_net.heads import bottlenecks

HRNET = 3_860_720
KINDS = {
    "segmentation": ("segmentation", 40),
    "depth": ("depth", 1),
    "edges": ("edges", 1),
    "normals": ("normals", 3),
    "objects": ("segmentation", 21),
    "human_parts": ("segmentation", 7),
    "saliency": ("saliency", 1),
}
NYUD = ("segmentation", "depth")
PASCAL = ("objects", "human_parts", "saliency", "edges", "normals")


class Maps(Backbone):
    """Announces the maps of HRNet-W18."""

    out_channels, strides, input_multiple, main_map = (144, 72, 36, 18), (32, 16, 8, 4), 32, 0

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        raise NotImplementedError


def model_of(names: Sequence[str], auxiliary: Sequence[str] = ()) -> MultiTaskModel:
    tasks = [Task(name=n, kind=KINDS[n][0], channels=KINDS[n][1]) for n in (*names, *auxiliary)]
    with torch.device("meta"):
        backbone = PADNet(tasks, backbone=Maps, auxiliary=tuple(auxiliary))
        info = FeatureInfo.of(backbone)
        heads = {t.name: PointwiseHead(t, info) for t in tasks if t.name in auxiliary} | {
            t.name: bottlenecks(t, info) for t in tasks if t.name not in auxiliary
        }
        return MultiTaskModel(tasks, backbone, heads)


def size(module: nn.Module) -> int:
    return count_parameters(module.parameters())


@pytest.mark.parametrize(
    ("names", "auxiliary", "count"),
    [
        (NYUD, (), 7_019_056),
        (NYUD, ("edges", "normals"), 12_161_332),
        (PASCAL, (), 29_304_992),
    ],
)
def test_published_models(names: Sequence[str], auxiliary: Sequence[str], count: int) -> None:
    assert HRNET + size(model_of(names, auxiliary)) == count


def test_parts() -> None:
    model = model_of(NYUD, ("edges",))
    backbone = model.backbone
    assert isinstance(backbone, PADNet)
    assert size(backbone.fusion) == 73_710  # a 1x1 convolution with bias and batch norm on 270
    message = backbone.distillation.messages.into["task_depth"]["task_edges"]
    assert size(message) == 2 * 9 * 256**2
    assert set(backbone.initial) == {"task_segmentation", "task_depth"}
    assert size(model.head("segmentation")) == 140_800 + 257 * 40
    assert size(model.head("edges")) == 257
