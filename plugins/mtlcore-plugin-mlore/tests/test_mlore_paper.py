"""The methods on real data against the authors' recipe (arXiv 2403.17749 and its code)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlcore.testing import PaperContract

pytest.importorskip("mtlcore_timm", reason="mtlcore-plugin-timm is not installed")

README = Path(__file__).parents[1] / "README.md"
RECIPE: dict[str, Any] = {
    "model.backbone.name": "mlore",
    "model.backbone.chosen": 9,
    "model.backbone.backbone.name": "timm",
    "model.backbone.backbone.weights": "pretrained",
    "model.backbone.backbone.drop_path": 0.15,
    "model.head.name": "pointwise",
    "data.augment.flip": True,
    "data.augmentations.0.degrees": 0.0,
    "data.augmentations.0.scales": [0.5, 2.0],
    "data.augmentations.1.name": "photometric",
    "losses.segmentation.name": "cross-entropy",
    "losses.normals.name": "normals-l1",
    "losses.edges.name": "binary-cross-entropy",
    "losses.edges.divide_by": "number",
    "balancer.name": "fixed",
    "balancer.weights.segmentation": 1.0,
    "balancer.weights.normals": 10.0,
    "balancer.weights.edges": 50.0,
    "optimizer.name": "adam",
    "optimizer.weight_decay": 1e-6,
    "optimizer.clip": 10.0,
    "optimizer.schedule.name": "poly",
    "optimizer.schedule.power": 0.9,
    "training.batch_size": 4,
    "training.steps": 40_000,
}
DEVIATIONS = {"balancer.weights.normals": "a weight of 30 for the mean over x, y and z"}


@pytest.fixture(autouse=True)
def _with_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_PLUGINS", "mlore,timm")


class TestNYUD(PaperContract):
    method = "mlore-nyud"
    readme = README
    paper = {
        **RECIPE,
        "tasks": ["segmentation", "depth", "normals", "edges"],
        "data.name": "nyud-mt",
        "data.size": [448, 576],
        "model.backbone.backbone.model": "vit_large_patch16_384.augreg_in21k_ft_in1k",
        "model.backbone.backbone.out_indices": [5, 11, 17, 23],
        "model.backbone.channels": 768,
        "model.backbone.ranks": list(range(16, 241, 16)),
        "model.backbone.task_rank": 16,
        "model.backbone.renormalise": True,
        "model.backbone.load_balancing": 5e-4,
        "model.backbone.grid": [28, 36],
        "losses.depth.name": "l1",
        "losses.edges.positive_weight": 0.88,
        "balancer.weights.depth": 1.0,
        "optimizer.lr": 1e-5,
    }
    deviations = DEVIATIONS


class TestPascal(PaperContract):
    method = "mlore-pascal"
    readme = README
    paper = {
        **RECIPE,
        "tasks": ["segmentation", "human_parts", "normals", "saliency", "edges"],
        "data.name": "pascal-context",
        "data.size": [512, 512],
        "model.backbone.backbone.model": "vit_base_patch16_384.augreg_in21k_ft_in1k",
        "model.backbone.backbone.out_indices": [2, 5, 8, 11],
        "model.backbone.channels": 640,
        "model.backbone.ranks": [16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128],
        "model.backbone.task_rank": 64,
        "model.backbone.renormalise": False,
        "model.backbone.load_balancing": 1e-4,
        "model.backbone.grid": [32, 32],
        "losses.edges.positive_weight": 0.95,
        "losses.human_parts.name": "cross-entropy",
        "losses.saliency.positive_weight": "the share of negatives in the batch",
        "losses.saliency.divide_by": "number",
        "balancer.weights.human_parts": 2.0,
        "balancer.weights.saliency": 5.0,
        "optimizer.lr": 2e-5,
    }
    deviations = {
        **DEVIATIONS,
        "losses.saliency.positive_weight": "saliency's positives and negatives count alike",
    }
