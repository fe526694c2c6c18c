"""Numbers of parameters at full width are those of the published code, model by module."""

from __future__ import annotations

import pytest
import torch

from mtlcore.features import FeatureInfo
from mtlcore.models import Backbone, MultiTaskModel, count_parameters
from mtlcore.standard.heads import ConvHead
from mtlcore.standard.segnet import SegNet
from mtlcore.tasks import Task
from mtlcore_atinet.atinet import ATINet
from mtlcore_atinet.mtan import MTAN
from mtlcore_atinet.padnet import PADNet
from mtlcore_atinet.single import SegNetPerTask
from mtlcore_atinet.split import DeepSegNet

TASKS = (
    Task(name="segmentation", kind="segmentation", channels=13),
    Task(name="depth", kind="depth", channels=1),
    Task(name="normals", kind="normals", channels=3),
)

PER_LEVEL = {
    "encoder.levels.{}.first": (1_920, 74_112, 295_680, 1_181_184, 2_360_832),
    "encoder.levels.{}.rest": (37_056, 147_840, 1_181_184, 4_721_664, 4_721_664),
    "decoder.levels.{}.first": (37_056, 73_920, 295_296, 1_180_416, 2_360_832),
    "decoder.levels.{}.rest": (37_056, 37_056, 295_680, 1_181_184, 4_721_664),
    "attention.masks.task_depth.encoder.{}": (8_576, 49_920, 198_144, 789_504, 789_504),
    "attention.masks.task_depth.decoder.{}": (12_672, 16_768, 66_304, 263_680, 789_504),
    "attention.encoder_convs.{}": (74_112, 295_680, 1_181_184, 2_360_832, 2_360_832),
    "attention.decoder_convs.{}": (37_056, 73_920, 295_296, 1_180_416, 2_360_832),
}
IN_ALL = {
    "attention.encoder_convs": 6_272_640,
    "attention.decoder_convs": 3_947_520,
    "distillation.read": 520_128,
    "distillation.read.task_depth": 173_376,
    "distillation.gates": 443_136,
    "distillation.gates.into.task_depth.task_normals": 73_856,
    "distillation.write": 524_160,
    "distillation.write.task_depth": 174_720,
}


def model_of(backbone: type[Backbone]) -> MultiTaskModel:
    with torch.device("meta"):
        trunk = backbone(TASKS)
        info = FeatureInfo(trunk.out_channels, trunk.strides)
        return MultiTaskModel(TASKS, trunk, {task.name: ConvHead(task, info) for task in TASKS})


@pytest.mark.parametrize(
    ("backbone", "count"),
    [
        (SegNet, 25_055_185),
        (MTAN, 44_229_073),
        (ATINet, 45_716_497),
        (PADNet, 45_938_641),
        (DeepSegNet, 50_807_761),
        (SegNetPerTask, 74_941_777),
    ],
)
def test_models(backbone: type[Backbone], count: int) -> None:
    assert count_parameters(model_of(backbone).parameters()) == count


def test_modules_of_atinet() -> None:
    backbone = model_of(ATINet).backbone
    expected = IN_ALL | {
        name.format(level): count
        for name, counts in PER_LEVEL.items()
        for level, count in enumerate(counts)
    }
    counted = {
        name: count_parameters(backbone.get_submodule(name).parameters()) for name in expected
    }
    assert counted == expected


def test_heads_and_single_tasks() -> None:
    model = model_of(SegNetPerTask)
    heads = [count_parameters(model.head(task.name).parameters()) for task in TASKS]
    assert heads == [37_773, 36_993, 37_123]
    networks = [count_parameters(model.task_parameters(task.name)) for task in TASKS]
    assert networks == [24_981_069, 24_980_289, 24_980_419]
    assert model.shared_parameters() == []
