"""Numbers of parameters are those of the authors' code, less what that makes and never reads.

The encoder is not built: its size is timm's, and the rest depends on its channels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, MultiTaskModel, count_parameters
from mtlcore.standard.heads import PointwiseHead
from mtlcore.tasks import Task
from mtlcore_invpt.backbone import InvPT

# Saliency has two classes in the authors' code.
PASCAL = (("segmentation", 21), ("segmentation", 7), ("segmentation", 2), ("edges", 1),
          ("normals", 3))  # fmt: skip
NYUD = (("segmentation", 40), ("depth", 1), ("normals", 3), ("edges", 1))


def vit(channels: int) -> Callable[[Sequence[Task]], Backbone]:
    """Announces three maps of a ViT."""

    class Maps(Backbone):
        out_channels, strides, input_multiple, main_map = (channels,) * 3, (16,) * 3, 16, 0

        def __init__(self, tasks: Sequence[Task]) -> None:
            super().__init__()

        def forward(self, inputs: torch.Tensor, tasks: Sequence[str]) -> Features:
            raise NotImplementedError

    return Maps


def model_of(kinds: Sequence[tuple[str, int]], channels: int) -> MultiTaskModel:
    tasks = [Task(name=f"task{n}", kind=k, channels=c) for n, (k, c) in enumerate(kinds)]
    with torch.device("meta"):
        backbone = InvPT(tasks, backbone=vit(channels))
        info = FeatureInfo.of(backbone)
        return MultiTaskModel(tasks, backbone, {t.name: PointwiseHead(t, info) for t in tasks})


def size(module: nn.Module) -> int:
    return count_parameters(module.parameters())


def never_read(tasks: int, channels: int) -> int:
    """What the authors' decoder has besides, and no prediction depends on."""
    added_to_the_first_stage = 9 * channels * 576 + 576
    projections_of_the_first_stage = tasks * (576 * 576 + 576)
    mixing_of_its_attention = 2 * 4 + 2
    a_last_norm = 2 * 144 * tasks
    return (
        added_to_the_first_stage
        + projections_of_the_first_stage
        + mixing_of_its_attention
        + a_last_norm
    )


@pytest.mark.parametrize(
    ("kinds", "channels", "decoder", "heads"),
    [
        (PASCAL, 1024, 118_760_688, 19_618),
        (PASCAL, 768, 89_893_616, 19_618),
        (NYUD, 1024, 97_933_803, 25_965),
    ],
)
def test_published_models(
    kinds: Sequence[tuple[str, int]], channels: int, decoder: int, heads: int
) -> None:
    model = model_of(kinds, channels)
    assert size(model.backbone) == decoder - never_read(len(kinds), channels)
    assert size(model) - size(model.backbone) == heads


def test_parts_over_vit_l() -> None:
    backbone = model_of(PASCAL, 1024).backbone
    assert isinstance(backbone, InvPT)
    assert size(backbone.preliminary) == 5 * 14_158_848
    assert [size(skip) for skip in backbone.skip] == [2_654_496, 1_327_248]
    growing = [0, 5 * 2_240_640, 5 * 560_448]
    # The first stage mixes no attention of another one.
    blocks = [4_020_480, 1_014_922, 258_634]
    assert [size(stage) for stage in backbone.stages] == [
        one + other for one, other in zip(growing, blocks, strict=True)
    ]
