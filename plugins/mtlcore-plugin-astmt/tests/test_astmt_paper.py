"""The methods on real data against the authors' code (facebookresearch/astmt)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlcore.testing import PaperContract

pytest.importorskip("mtlcore_timm", reason="mtlcore-plugin-timm is not installed")

README = Path(__file__).parents[1] / "README.md"
CODE: dict[str, Any] = {
    "data.size": [512, 512],
    "data.augment.flip": True,
    "data.augmentations.0.degrees": 20.0,
    "data.augmentations.0.scales": [0.75, 1.25],
    "model.backbone.name": "astmt",
    "model.backbone.channels": 64,
    "model.backbone.reduction": 16,
    "model.backbone.encoder.weights": "pretrained",
    "model.backbone.encoder.options.output_stride": 16,
    "model.head.name": "pointwise",
    "cross_task.0.weight": 0.01,
    "cross_task.0.rate": 10.0,
    "losses.segmentation.name": "cross-entropy",
    "losses.normals.name": "normals-l1",
    "losses.edges.divide_by": "number",
    "balancer.name": "fixed",
    "balancer.weights.segmentation": 1.0,
    "balancer.weights.normals": 10.0,
    "balancer.weights.edges": 50.0,
    "optimizer.name": "sgd",
    "optimizer.lr": 1e-3,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule.name": "poly",
    "optimizer.schedule.power": 0.9,
    "training.batch_size": 8,
}


@pytest.fixture(autouse=True)
def _with_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_PLUGINS", "astmt,timm")


class TestNYUD(PaperContract):
    method = "astmt-nyud"
    readme = README
    paper = {
        **CODE,
        "tasks": ["segmentation", "depth", "normals", "edges"],
        "data.name": "nyud-mt",
        "model.backbone.encoder.model": "seresnet50.ra2_in1k",
        "cross_task.0.kernel": 3,
        "losses.depth.name": "l1",
        "losses.edges.positive_weight": 0.8,
        "balancer.weights.depth": 1.0,
        "training.epochs": 200,
    }


class TestPascal(PaperContract):
    method = "astmt-pascal"
    readme = README
    paper = {
        **CODE,
        "tasks": ["segmentation", "human_parts", "normals", "saliency", "edges"],
        "data.name": "pascal-context",
        "model.backbone.encoder.model": "an SE-ResNet of 26 layers, of 101 in the paper",
        "cross_task.0.kernel": 1,
        "losses.human_parts.name": "cross-entropy",
        "losses.saliency.positive_weight": "the share of negatives in the batch",
        "losses.saliency.divide_by": "number",
        "losses.edges.positive_weight": 0.95,
        "balancer.weights.human_parts": 2.0,
        "balancer.weights.saliency": 5.0,
        "training.epochs": 60,
    }
    deviations = {
        "model.backbone.encoder.model": "PASCAL's best row is of 101 layers",
        "losses.saliency.positive_weight": "saliency's positives and negatives count alike",
    }
