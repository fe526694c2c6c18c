"""The published methods against what the paper says (arXiv 2201.10649)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"
# One recipe for all networks that it compares; without augmentation.
PAPER: dict[str, Any] = {
    "tasks": ["segmentation", "depth", "normals"],
    "data.name": "nyuv2",
    "data.augment.scales": [1.0],
    "data.augment.flip": False,
    "model.backbone.width": 1.0,
    "model.head.name": "conv",
    "losses.segmentation.name": "cross-entropy",
    "losses.depth.name": "l1",
    "losses.normals.name": "cosine",
    "balancer.name": "dwa",
    "balancer.temperature": 2.0,
    "optimizer.name": "adam",
    "optimizer.lr": 1e-4,
    "optimizer.schedule.name": "step",
    "optimizer.schedule.at": [0.5],
    "optimizer.schedule.gamma": 0.5,
    "training.batch_size": 2,
    "training.epochs": 200,
    "training.evaluate_every": 1,
    "training.average_last": 10,
}


class TestATINet(PaperContract):
    """The second half of the run distils, and begins with attention drawn anew."""

    method = "atinet-nyuv2"
    readme = README
    paper = {
        **PAPER,
        "model.backbone.name": "atinet",
        "model.backbone.distil_from": 0.5,
        "model.backbone.decoder_input": "distilled",
        "model.backbone.reset": "paper",
    }


class TestMTAN(PaperContract):
    method = "mtan-nyuv2"
    readme = README
    paper = {**PAPER, "model.backbone.name": "mtan"}


class TestPADNet(PaperContract):
    method = "padnet-nyuv2"
    readme = README
    paper = {**PAPER, "model.backbone.name": "padnet"}


class TestSplit(PaperContract):
    method = "split-nyuv2"
    readme = README
    paper = {**PAPER, "model.backbone.name": "segnet-deep"}


class TestOneTask(PaperContract):
    """Tasks that share nothing have nothing to weigh."""

    method = "one-task-nyuv2"
    readme = README
    paper = {
        **{key: value for key, value in PAPER.items() if key != "balancer.temperature"},
        "model.backbone.name": "segnet-per-task",
        "balancer.name": "equal",
    }
