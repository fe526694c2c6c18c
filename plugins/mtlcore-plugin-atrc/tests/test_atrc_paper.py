"""The methods on NYUD against the authors' code (arXiv 2104.13874)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlcore.testing import PaperContract

pytest.importorskip("mtlcore_timm", reason="mtlcore-plugin-timm is not installed")

README = Path(__file__).parents[1] / "README.md"
CODE: dict[str, Any] = {
    "tasks": ["segmentation", "depth", "normals", "edges"],
    "data.name": "nyud-mt",
    "data.size": [425, 560],
    "data.augment.flip": True,
    "data.augmentations.0.degrees": 0.0,
    "data.augmentations.0.scales": [0.5, 2.0],
    "data.augmentations.1.name": "photometric",
    "model.backbone.name": "atrc",
    "model.backbone.backbone.name": "timm",
    "model.backbone.backbone.model": "hrnet_w18_small_v2.ms_in1k",
    "model.backbone.backbone.weights": "pretrained",
    "model.backbone.window": 9,
    "model.backbone.labels": 40,
    "model.backbone.dropout": 0.05,
    "model.head.name": "pointwise",
    "losses.segmentation.name": "cross-entropy",
    "losses.depth.name": "l1",
    "losses.normals.name": "normals-l1",
    "losses.edges.name": "binary-cross-entropy",
    "losses.edges.positive_weight": 0.8,
    "balancer.name": "fixed",
    "balancer.weights.segmentation": 1.0,
    "balancer.weights.depth": 1.0,
    "balancer.weights.normals": 10.0,
    "balancer.weights.edges": 50.0,
    "optimizer.weight_decay": 5e-4,
    "optimizer.schedule.name": "poly",
    "optimizer.schedule.power": 0.9,
    "training.batch_size": 8,
    "training.steps": 40_000,
}
DEVIATIONS = {"balancer.weights.normals": "30 for normals, whose loss here is a mean"}


@pytest.fixture(autouse=True)
def _with_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_PLUGINS", "atrc,timm")


class TestSearch(PaperContract):
    method = "atrc-search-nyud"
    readme = README
    paper = {
        **CODE,
        "model.backbone.search": 1.0,
        "model.backbone.temperature": 1.0,
        "model.backbone.cold": 0.05,
        "model.backbone.entropy": [-0.02, 0.06],
        "model.backbone.margin": 0.3,
        "model.backbone.rate": 1.0,
        "optimizer.name": "sgd; adam for the logits",
        "optimizer.lr": "0.01; 0.0005 for the logits",
    }
    deviations = {
        **DEVIATIONS,
        "optimizer.name": "one optimizer learns networks and logits",
        "optimizer.lr": "Adam at 5e-4, which is published for the logits",
    }


class TestTraining(PaperContract):
    method = "atrc-nyud"
    readme = README
    paper = {
        **CODE,
        "model.backbone.search": 0.0,
        "optimizer.name": "sgd",
        "optimizer.lr": 0.01,
        "optimizer.momentum": 0.9,
    }
    deviations = DEVIATIONS
