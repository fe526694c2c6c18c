"""The published methods against what paper and code say (arXiv 2210.06989)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlcore.testing import NOT_SAID, PaperContract

TASKS = ["segmentation", "depth", "normals", "edges"]
PAPER: dict[str, Any] = {
    "tasks": TASKS,
    "data.size": [256, 256],
    "data.ignore_classes.segmentation": ["background"],
    # A dilated ResNet-50, DeepLab heads.
    "model.backbone.name": "resnet",
    "model.backbone.depth": 50,
    "model.backbone.output_stride": 8,
    "model.backbone.width": 1.0,
    "model.head.name": "deeplab",
    "model.head.rates": NOT_SAID,
    "model.head.channels": NOT_SAID,
    "model.head.dropout": NOT_SAID,
    "model.heads.edges.name": "deeplab-repeated",
    "model.heads.edges.rates": NOT_SAID,
    "model.heads.edges.channels": NOT_SAID,
    "model.heads.edges.dropout": NOT_SAID,
    "model.heads.edges.outputs": NOT_SAID,
    # Losses: cross-entropy, that of Hu et al., inverse cosine, Huber.
    "losses.segmentation.name": "cross-entropy",
    "losses.depth.name": "hu-depth",
    "losses.depth.a": 0.5,
    "losses.depth.from_zero": False,
    "losses.normals.name": "cosine",
    "losses.edges.name": "huber",
    "losses.edges.delta": 0.5,
    "balancer.name": "uncertainty",
    "balancer.form": "mtml",
    # All subsets of two or more tasks; one step of SGD inside, AdamW outside.
    "episodes.name": "task-powerset",
    "optimizer.name": "mtml",
    "optimizer.lr": 1e-5,
    "optimizer.inner_lr": 1e-5,
    "optimizer.inner_steps": 1,
    "optimizer.inner_scope": "all",
    "optimizer.second_order": False,
    "optimizer.eps": NOT_SAID,
    "optimizer.weight_decay": NOT_SAID,
    "training.batch_size": 64,
    "training.epochs": NOT_SAID,
    "training.task_patience": 35,
    "training.patience": 50,
}
HEADS = "256 channels, dilations of 12, 24 and 36 and dropout of one half"
RATES = "Learning rates are the code's (3e-4 inside, 1e-4 outside), the paper has 1e-5"
DEVIATIONS = {
    "model.head.rates": HEADS,
    "model.head.channels": HEADS,
    "model.head.dropout": HEADS,
    "model.heads.edges.rates": HEADS,
    "model.heads.edges.channels": HEADS,
    "model.heads.edges.dropout": HEADS,
    "model.heads.edges.outputs": "and the three outputs of the edge head",
    "losses.depth.from_zero": "Depth's loss is the published one plus a constant, 3 ln 2",
    "optimizer.lr": RATES,
    "optimizer.inner_lr": RATES,
    "optimizer.eps": "AdamW's epsilon (1e-7)",
    "optimizer.weight_decay": "and weight decay (0.01)",
    "training.epochs": "at most 500 epochs",
}


class TestNYUv2(PaperContract):
    method = "mtml-nyuv2"
    readme = Path(__file__).parents[1] / "README.md"
    paper = {**PAPER, "data.name": "nyud-mt", "data.classes": NOT_SAID}
    deviations = {**DEVIATIONS, "data.classes": "The number of the classes on NYUv2, 41"}


class TestTaskonomy(PaperContract):
    method = "mtml-taskonomy"
    readme = TestNYUv2.readme
    paper = {**PAPER, "data.name": "taskonomy"}
    deviations = DEVIATIONS
