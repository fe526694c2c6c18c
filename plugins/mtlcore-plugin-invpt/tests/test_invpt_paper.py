"""The methods on real data against the authors' recipe (arXiv 2203.07997 and its code)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlcore.testing import PaperContract

pytest.importorskip("mtlcore_timm", reason="mtlcore-plugin-timm is not installed")

README = Path(__file__).parents[1] / "README.md"
RECIPE: dict[str, Any] = {
    "model.backbone.name": "invpt",
    "model.backbone.preliminary": 512,
    "model.backbone.channels": 576,
    "model.backbone.backbone.name": "timm",
    "model.backbone.backbone.model": "vit_large_patch16_384.augreg_in21k_ft_in1k",
    "model.backbone.backbone.weights": "pretrained",
    "model.backbone.backbone.out_indices": [5, 11, 23],
    "model.backbone.backbone.drop_path": 0.15,
    "model.head.name": "pointwise",
    "data.augment.flip": True,
    "data.augmentations.0.degrees": 0.0,
    "data.augmentations.0.scales": [0.5, 2.0],
    "data.augmentations.1.name": "photometric",
    "losses.segmentation.name": "cross-entropy",
    "losses.normals.name": "normals-l1",
    "losses.edges.name": "binary-cross-entropy",
    "losses.edges.positive_weight": 0.95,
    "losses.edges.divide_by": "number",
    "balancer.name": "fixed",
    "balancer.weights.segmentation": 1.0,
    "balancer.weights.normals": 10.0,
    "balancer.weights.edges": 50.0,
    "optimizer.name": "adam",
    "optimizer.lr": 2e-5,
    "optimizer.weight_decay": 1e-6,
    "optimizer.schedule.name": "poly",
    "optimizer.schedule.power": 0.9,
    "training.batch_size": "2 in each process",
    "training.steps": 40_000,
}
DEVIATIONS = {
    "balancer.weights.normals": "a weight of 30 for the mean over x, y and z",
    "training.batch_size": "Batches have six images",
}


@pytest.fixture(autouse=True)
def _with_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_PLUGINS", "invpt,timm")


class TestNYUD(PaperContract):
    method = "invpt-nyud"
    readme = README
    paper = {
        **RECIPE,
        "tasks": ["segmentation", "depth", "normals", "edges"],
        "data.name": "nyud-mt",
        "data.size": [448, 576],
        "losses.depth.name": "l1",
        "balancer.weights.depth": 1.0,
    }
    deviations = DEVIATIONS


class TestPascal(PaperContract):
    method = "invpt-pascal"
    readme = README
    paper = {
        **RECIPE,
        "tasks": ["segmentation", "human_parts", "normals", "saliency", "edges"],
        "data.name": "pascal-context",
        "data.size": [512, 512],
        "losses.human_parts.name": "cross-entropy",
        "losses.saliency.positive_weight": "the share of negatives in the batch",
        "losses.saliency.divide_by": "number",
        "balancer.weights.human_parts": 2.0,
        "balancer.weights.saliency": 5.0,
    }
    deviations = {
        **DEVIATIONS,
        "losses.saliency.positive_weight": "saliency's positives and negatives count alike",
    }
