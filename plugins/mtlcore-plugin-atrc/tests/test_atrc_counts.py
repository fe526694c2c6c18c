"""Numbers of parameters are those of the authors' layers, over HRNet-W18.

The encoder is not built: its size is timm's, and the rest depends on its channels alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, MultiTaskModel, count_parameters
from mtlcore.standard.heads import PointwiseHead
from mtlcore.tasks import Task
from mtlcore_atrc.backbone import ATRC
from mtlcore_atrc.contexts import Kind

TASKS = (
    Task(name="segmentation", kind="segmentation", channels=40),
    Task(name="depth", kind="depth", channels=1),
    Task(name="normals", kind="normals", channels=3),
    Task(name="edges", kind="edges", channels=1),
)
NAMES = [task.name for task in TASKS]
LABELS = {"segmentation": 40, "depth": 40, "normals": 40, "edges": 2}
# Values of labels are learnt here: 40 of one number, 40 of three.
LEARNT = {"segmentation": 0, "depth": 40, "normals": 120, "edges": 0}
ALL, WIDTH, INNER = 18 + 36 + 72 + 144, 67, 33


class Maps(Backbone):
    """Announces the maps of HRNet-W18."""

    out_channels, strides, input_multiple, main_map = (144, 72, 36, 18), (32, 16, 8, 4), 32, 0

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        raise NotImplementedError


def size_of(genotype: Mapping[str, Mapping[str, Kind]] | None) -> int:
    with torch.device("meta"):
        backbone = ATRC(TASKS, backbone=Maps, genotype=genotype)
        info = FeatureInfo.of(backbone)
        model = MultiTaskModel(TASKS, backbone, {t.name: PointwiseHead(t, info) for t in TASKS})
    assert backbone.out_channels == (WIDTH,)
    return count_parameters(model.parameters())


def normed(inputs: int, outputs: int, side: int = 1) -> int:
    """A convolution without a bias, and batch norm."""
    return side**2 * inputs * outputs + 2 * outputs


def published(genotype: Mapping[str, Mapping[str, Kind]]) -> int:
    """What the authors' head has, layer by layer as they name them."""
    context = 3 * normed(WIDTH, INNER) + 2 * normed(INNER, INNER)
    count = 0
    for task in TASKS:
        row = genotype.get(task.name, {})
        sources = sum(kind != "none" for kind in row.values())
        bottleneck = normed(ALL, WIDTH, 3)
        final = (WIDTH + 1) * task.channels
        out = normed(INNER * sources, WIDTH) if sources else 0
        count += bottleneck + final + sources * context + out
        count += normed(WIDTH * (2 if sources else 1), WIDTH)
        by_labels = "t-label" in row.values() or any(
            other.get(task.name) == "s-label" for other in genotype.values()
        )
        if by_labels:
            auxiliary = normed(ALL, ALL) + (ALL + 1) * LABELS[task.name]
            count += auxiliary + LEARNT[task.name]
    return count


MIXED: dict[str, dict[str, Kind]] = {
    "segmentation": {"segmentation": "global", "depth": "local", "edges": "s-label"},
    "depth": {"segmentation": "t-label", "depth": "local", "normals": "none"},
    "edges": dict.fromkeys(NAMES, "local"),
}


@pytest.mark.parametrize(
    "genotype",
    [
        {},
        {target: dict.fromkeys(NAMES, "global") for target in NAMES},
        {target: dict.fromkeys(NAMES, "t-label") for target in NAMES},
        MIXED,
    ],
    ids=["nothing", "global", "t-label", "mixed"],
)
def test_of_a_genotype(genotype: Mapping[str, Mapping[str, Kind]]) -> None:
    assert size_of(genotype) == published(genotype)


def test_the_numbers_of_the_page() -> None:
    everywhere = {target: dict.fromkeys(NAMES, "global") for target in NAMES}
    assert size_of({}) == 673_328
    assert size_of(everywhere) == 873_452


def test_while_searching_there_is_every_kind() -> None:
    """4 kinds between two tasks, 3 of one task alone, and 5 or 4 logits."""
    context = 3 * normed(WIDTH, INNER) + 2 * normed(INNER, INNER)
    count = 12 * (4 * context + 5) + 4 * (3 * context + 4)
    for task in TASKS:
        count += normed(ALL, WIDTH, 3) + (WIDTH + 1) * task.channels
        count += normed(4 * INNER, WIDTH) + normed(2 * WIDTH, WIDTH)
        count += normed(ALL, ALL) + (ALL + 1) * LABELS[task.name] + LEARNT[task.name]
    assert size_of(None) == count
