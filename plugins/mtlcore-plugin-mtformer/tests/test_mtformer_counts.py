"""Numbers of parameters are those of the authors' code, less what that makes and never reads.

The encoder is not built: its size is timm's, and the rest depends on its channels alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, MultiTaskModel, count_parameters
from mtlcore.tasks import Task
from mtlcore_mtformer.backbone import MTFormer
from mtlcore_mtformer.contrast import TaskContrast
from mtlcore_mtformer.head import MTFormerHead

NYUD = (40, 1)
PASCAL = (21, 7, 1)
SWIN_S = (768, 384, 192, 96)


class Maps(Backbone):
    """Announces the four maps of Swin-S."""

    out_channels, strides, input_multiple, main_map = SWIN_S, (32, 16, 8, 4), 32, 0

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()

    def forward(self, inputs: torch.Tensor, tasks: Sequence[str]) -> Features:
        raise NotImplementedError


def size(module: nn.Module) -> int:
    return count_parameters(module.parameters())


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def swin_pair(c: int, heads: int, side: int) -> int:
    """Two of Swin's blocks, whose queries, keys and values are a layer of 3 c outputs; a norm."""
    table = (2 * side - 1) ** 2 * heads
    attention = table + linear(c, 3 * c) + linear(c, c)
    block = 2 * c + attention + 2 * c + linear(c, 4 * c) + linear(4 * c, c)
    return 2 * block + 2 * c


def cross_pair(c: int, heads: int, side: int, tasks: int) -> int:
    """The same blocks, and perceptrons of as many inner channels as all tasks have."""
    inner, others = tasks * c, tasks - 1
    own = linear(c, inner) + linear(inner, c)
    theirs = others * (linear(c, inner) + linear(inner, c // others)) if others else 0
    merged = c + others * (c // others) if others else c
    merge = linear(merged, inner) + linear(inner, c)
    return swin_pair(c, heads, side) + 2 * (own + theirs + merge)


def decoder(widths: Sequence[int], c: int, heads: int, side: int, tasks: int) -> int:
    norms = sum(2 * width for width in widths)
    pairs = (1 + tasks) * swin_pair(c, heads, side) + tasks * cross_pair(c, heads, side, tasks)
    return norms + linear(sum(widths), c) + pairs


def model_of(classes: Sequence[int], **settings: int) -> MultiTaskModel:
    tasks = [Task(name=f"task{n}", kind="segmentation", channels=c) for n, c in enumerate(classes)]
    with torch.device("meta"):
        backbone = MTFormer(tasks, backbone=Maps, **settings)
        info = FeatureInfo.of(backbone)
        heads = {task.name: MTFormerHead(task, info) for task in tasks}
        return MultiTaskModel(tasks, backbone, heads)


@pytest.mark.parametrize("classes", [NYUD, PASCAL, (3,), (2, 2, 2, 2)])
@pytest.mark.parametrize(("c", "heads", "side"), [(256, 4, 7), (24, 3, 5)])
def test_a_model_has_the_parameters_of_the_formula(
    classes: Sequence[int], c: int, heads: int, side: int
) -> None:
    model = model_of(classes, channels=c, heads=heads, window=side)
    assert size(model.backbone) == decoder(SWIN_S[:3], c, heads, side, len(classes))
    branches = sum(c * c + 2 * c + linear(c, count) for count in classes)
    assert size(model) - size(model.backbone) == branches


@pytest.mark.parametrize(
    ("classes", "whole"), [(NYUD, 15_081_192), (PASCAL, 25_074_296)], ids=["nyud", "pascal"]
)
def test_published_models(classes: Sequence[int], whole: int) -> None:
    """Of each pair of blocks the code has an embedding of patches that nothing reads."""
    embedding = 16 * 256 * 256 + 256 + 2 * 256
    found = size(model_of(classes).backbone) + (1 + len(classes)) * embedding
    assert found == whole


def test_the_contrast_has_two_layers_per_task() -> None:
    tasks = [Task(name=f"task{n}", kind="segmentation", channels=2) for n in range(3)]
    info = FeatureInfo((256,), (8,), main_map=0)
    with torch.device("meta"):
        loss = TaskContrast(tasks, info)
        lone = TaskContrast(tasks[:1], info)
    assert size(loss) == 3 * (linear(256, 128) + linear(128, 128))
    assert size(lone) == 0
    assert not [*lone.memories]
