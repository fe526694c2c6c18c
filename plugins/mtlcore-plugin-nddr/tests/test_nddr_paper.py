"""The published methods against what the paper and its code say (arXiv 1801.08297)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"
PAPER: dict[str, Any] = {
    "tasks": ["segmentation", "normals"],
    "model.backbone.name": "nddr",
    "model.backbone.backbone.name": "vgg16-deeplab",
    "model.backbone.backbone.width": 1.0,
    "model.backbone.exchange_at": [0, 1, 2, 3, 4],
    "model.backbone.own": 0.9,
    "model.backbone.activation": "relu",
    "model.backbone.layer_rate": 100.0,
    "balancer.name": "fixed",
    "balancer.weights.normals": 20.0,
    "optimizer.name": "sgd",
    "optimizer.lr": 1e-3,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 2.5e-4,
    "optimizer.schedule.name": "poly",
    "optimizer.schedule.power": 0.9,
    "optimizer.schedule.at": NOT_SAID,
    "optimizer.schedule.gamma": NOT_SAID,
    "training.batch_size": 10,
    "training.steps": 20_001,
    "training.epochs": NOT_SAID,
    "training.evaluate_every": NOT_SAID,
    "training.average_last": NOT_SAID,
}
OURS = "The methods here train as MTAN's paper does where it compares networks"
RECIPE = ("tasks", "balancer.", "optimizer.", "training.")
DEVIATIONS = {
    **{s: OURS for s in PAPER if s.startswith(RECIPE)},
    "model.backbone.backbone.name": "SegNet's encoder is VGG-16 as well",
}


class TestNDDR(PaperContract):
    method = "nddr-nyuv2"
    readme = README
    paper = {**PAPER, "model.backbone.shortcut": False}
    deviations = DEVIATIONS


class TestShortcut(PaperContract):
    method = "nddr-shortcut-nyuv2"
    readme = README
    paper = {**PAPER, "model.backbone.shortcut": True}
    deviations = DEVIATIONS
