"""The methods on NYUv2 against the authors' code, which says more than the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"
RECIPE: dict[str, Any] = {
    "tasks": ["segmentation", "depth", "normals"],
    "data.name": "nyuv2",
    "data.augment.flip": False,
    "data.augment.scales": [1.0],
    "model.backbone.name": "segnet",
    "model.backbone.width": 1.0,
    "model.head.name": "conv",
    "losses.segmentation.name": "cross-entropy",
    "losses.depth.name": "l1",
    "losses.normals.name": "cosine",
    "balancer.name": "equal",
    "optimizer.name": "adam",
    "optimizer.lr": 1e-4,
    "optimizer.schedule.name": "step",
    "optimizer.schedule.at": [0.5],
    "optimizer.schedule.gamma": 0.5,
    "training.batch_size": 2,
    "training.epochs": 200,
    "training.evaluate_every": 1,
}


class TestNYUv2(PaperContract):
    method = "kdmtl-nyuv2"
    readme = README
    paper = RECIPE | {
        "cross_task.0.name": "kdmtl",
        "cross_task.0.weights.segmentation": 1.0,
        "cross_task.0.weights.depth": 1.0,
        "cross_task.0.weights.normals": 2.0,
        "cross_task.0.lr": 0.1,
        "cross_task.0.weight_decay": 5e-4,
        "cross_task.0.schedule.name": "constant",
    }


class TestTeacherOnNYUv2(PaperContract):
    method = "kdmtl-teacher-nyuv2"
    readme = README
    paper = RECIPE
