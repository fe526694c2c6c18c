"""The methods on real data against the published recipe (Vandenhende et al., arXiv 2004.13379)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlcore.testing import PaperContract

pytest.importorskip("mtlcore_timm", reason="mtlcore-plugin-timm is not installed")

README = Path(__file__).parents[1] / "README.md"
# Of the authors' code; the paper of PAD-Net has other encoders and another recipe.
RECIPE: dict[str, Any] = {
    "model.backbone.name": "pad-net",
    "model.backbone.distillation": "c",
    "model.backbone.channels": 256,
    "model.backbone.backbone.name": "timm",
    "model.backbone.backbone.model": "hrnet_w18_small_v2.ms_in1k",
    "model.backbone.backbone.weights": "pretrained",
    "model.head.name": "bottlenecks",
    "model.head.blocks": 2,
    "data.augment.flip": True,
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
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule.name": "poly",
    "optimizer.schedule.power": 0.9,
    "training.batch_size": 8,
    "training.epochs": 100,
}


@pytest.fixture(autouse=True)
def _with_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_PLUGINS", "pad-net,timm")


class TestNYUD(PaperContract):
    method = "pad-net-nyud"
    readme = README
    paper = {
        **RECIPE,
        "tasks": ["segmentation", "depth", "normals", "edges"],
        "model.backbone.auxiliary": ["normals", "edges"],
        "data.name": "nyud-mt",
        "data.size": [480, 640],
        "data.augment.scales": [1.0, 1.2, 1.5],
        "losses.depth.name": "l1",
        "balancer.weights.depth": 1.0,
    }


class TestPascal(PaperContract):
    method = "pad-net-pascal"
    readme = README
    paper = {
        **RECIPE,
        "tasks": ["segmentation", "human_parts", "normals", "saliency", "edges"],
        "data.name": "pascal-context",
        "data.size": [512, 512],
        "data.augmentations.0.degrees": 20.0,
        "data.augmentations.0.scales": [0.75, 1.25],
        "losses.human_parts.name": "cross-entropy",
        "losses.saliency.positive_weight": "the share of negatives in the batch",
        "losses.saliency.divide_by": "number",
        "balancer.weights.human_parts": 2.0,
        "balancer.weights.saliency": 5.0,
    }
    deviations = {
        "losses.saliency.positive_weight": "saliency's positives and negatives count alike",
    }
