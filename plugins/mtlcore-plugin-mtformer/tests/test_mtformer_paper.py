"""The methods on real data against the authors' recipe (ECCV 2022 and its code)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlcore.testing import PaperContract

pytest.importorskip("mtlcore_timm", reason="mtlcore-plugin-timm is not installed")

README = Path(__file__).parents[1] / "README.md"
RECIPE: dict[str, Any] = {
    "model.backbone.name": "mtformer",
    "model.backbone.channels": 256,
    "model.backbone.heads": 4,
    "model.backbone.window": 7,
    "model.backbone.stride": 8,
    "model.backbone.backbone.name": "timm",
    "model.backbone.backbone.model": "swin_small_patch4_window7_224.ms_in1k",
    "model.backbone.backbone.weights": "pretrained",
    "model.backbone.backbone.drop_path": 0.3,
    "model.head.name": "mtformer",
    "data.augment.flip": True,
    "losses.segmentation.name": "cross-entropy",
    "cross_task.0.name": "task-contrast",
    "cross_task.0.weight": 0.01,
    "cross_task.0.temperature": 0.07,
    "cross_task.0.momentum": 0.5,
    "cross_task.0.outputs": 128,
    "balancer.chain.0.name": "fixed",
    "balancer.chain.0.weights.segmentation": 10.0,
    "balancer.chain.1.name": "uncertainty",
    "balancer.chain.1.form": "mtml",
    "optimizer.name": "adamw",
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule.name": "poly",
    "optimizer.schedule.power": 0.9,
    "training.batch_size": 4,
    "training.epochs": 100,
}


@pytest.fixture(autouse=True)
def _with_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_PLUGINS", "mtformer,timm")


class TestNYUD(PaperContract):
    method = "mtformer-nyud"
    readme = README
    paper = {
        **RECIPE,
        "tasks": ["segmentation", "depth"],
        "data.name": "nyud-mt",
        "data.size": [480, 640],
        "data.augment.scales": [1.0, 1.2, 1.5],
        "losses.depth.name": "l1",
        "balancer.chain.0.weights.depth": 10.0,
        "cross_task.0.negatives": 700,
        "cross_task.0.samples": 795,
        "optimizer.lr": 5e-5,
    }


class TestPascal(PaperContract):
    method = "mtformer-pascal"
    readme = README
    paper = {
        **RECIPE,
        "tasks": ["segmentation", "human_parts", "saliency"],
        "data.name": "pascal-context",
        "data.size": [512, 512],
        "data.augmentations.0.degrees": 20.0,
        "data.augmentations.0.scales": [0.75, 1.25],
        "losses.human_parts.name": "cross-entropy",
        "losses.saliency.positive_weight": "the share of negatives in the batch",
        "losses.saliency.divide_by": "number",
        "balancer.chain.0.weights.human_parts": 20.0,
        "balancer.chain.0.weights.saliency": 300.0,
        "cross_task.0.negatives": 2000,
        "cross_task.0.samples": 4998,
        "optimizer.lr": 2.5e-5,
    }
    deviations = {
        "losses.saliency.positive_weight": "saliency's positives and negatives count alike",
    }
