"""Numbers of parameters are those of the authors' code, over HRNet-W18, in whole and in parts.

The encoder is not built: its size is timm's, and the rest depends on its channels alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, MultiTaskModel, count_parameters
from mtlcore.standard.decoder_heads import hrnet
from mtlcore.standard.heads import PointwiseHead
from mtlcore.tasks import Task
from mtlcore_mtinet.backbone import MTINet
from mtlcore_mtinet.scale import Scale

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
        backbone = MTINet(tasks, backbone=Maps, auxiliary=tuple(auxiliary))
        info = FeatureInfo.of(backbone)
        heads = {t.name: PointwiseHead(t, info) for t in tasks if t.name in auxiliary} | {
            t.name: hrnet(t, info) for t in tasks if t.name not in auxiliary
        }
        return MultiTaskModel(tasks, backbone, heads)


def size(module: nn.Module) -> int:
    return count_parameters(module.parameters())


@pytest.mark.parametrize(
    ("names", "auxiliary", "count"),
    [
        (NYUD, (), 8_578_179),
        (NYUD, ("edges", "normals"), 14_838_121),
        (PASCAL, (), 24_494_171),
    ],
)
def test_published_models(names: Sequence[str], auxiliary: Sequence[str], count: int) -> None:
    assert HRNET + size(model_of(names, auxiliary)) == count


def test_parts_from_the_deepest_scale_on() -> None:
    backbone = model_of(NYUD).backbone
    assert isinstance(backbone, MTINet)
    scales = [*backbone.scales]
    assert all(isinstance(scale, Scale) for scale in scales)
    initial = [size(scale.refine) + size(scale.initial) for scale in scales]
    assert initial == [1_501_241, 595_409, 149_981, 38_075]
    assert [size(scale.messages) for scale in scales] == [746_496, 186_624, 46_656, 11_664]
    propagating = [size(scale.propagate) for scale in scales[:-1]]
    assert propagating == [976_770, 244_592, 61_420]
    assert scales[-1].propagate is None


def test_heads_and_what_predicts_auxiliary_tasks() -> None:
    model = model_of(NYUD, ("edges",))
    assert size(model.head("segmentation")) == 73_710 + 271 * 40
    assert size(model.head("edges")) == 19  # a 1x1 convolution of the finest map
    early = [set(scale.initial) for scale in model.backbone.scales]
    everyone = {"task_segmentation", "task_depth", "task_edges"}
    assert early == [everyone, everyone, everyone, everyone - {"task_edges"}]
