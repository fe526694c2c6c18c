"""The methods on NYUv2 against the authors' code (sunxm2357/AdaShare, nyu_v2_2task.yml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"
CODE: dict[str, Any] = {
    "tasks": ["segmentation", "normals"],
    "data.name": "NYUv2, 40 classes, crops of 321 x 321",
    "model.backbone.name": "adashare",
    "model.backbone.warmup": 4_000 / 20_000,
    "model.backbone.curriculum": "one more block after every third epoch of policies",
    "model.backbone.temperature": 5.0,
    "model.backbone.cold": "times .965 after each epoch of policies",
    "model.backbone.sparsity": 0.05,
    "model.backbone.sharing": 0.05,
    "model.backbone.rate": 10.0,
    "model.backbone.decay": 5e-4,
    "model.backbone.encoder.name": "resnet",
    "model.backbone.encoder.depth": 18,
    "model.backbone.encoder.output_stride": 8,
    "model.backbone.encoder.width": 1.0,
    "model.head.name": "four dilated convolutions added up",
    "losses.segmentation.name": "cross-entropy",
    "losses.normals.name": "cosine",
    "balancer.name": "fixed",
    "balancer.weights.segmentation": 1.0,
    "balancer.weights.normals": 20.0,
    "optimizer.name": "adam",
    "optimizer.lr": 1e-3,
    "optimizer.betas": [0.5, 0.999],
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule.name": "step",
    "optimizer.schedule.at": [0.2, 0.4, 0.6, 0.8],
    "optimizer.schedule.gamma": 0.5,
    "training.batch_size": 16,
    "training.steps": 20_000,
    "training.epochs": NOT_SAID,
}
DEVIATIONS = {
    "data.name": "NYUv2 is that of MTAN",
    "model.backbone.curriculum": "The curriculum is a part of the search",
    "model.backbone.cold": "falls steadily from 5 to .02",
    "model.head.name": "The head is DeepLabV3's",
    "training.epochs": "Both runs end after 20,000 steps, whatever that is in epochs",
}


class TestSearch(PaperContract):
    method = "adashare-nyuv2"
    readme = README
    paper = {
        **CODE,
        "model.backbone.search": 1.0,
        "episodes.name": "halves",
        "optimizer.name": "sgd, for weights while policies learn",
    }
    deviations = {**DEVIATIONS, "optimizer.name": "Adam trains throughout"}


class TestRetraining(PaperContract):
    method = "adashare-retrain-nyuv2"
    readme = README
    paper = {**CODE, "model.backbone.search": 0.0, "episodes.name": "joint"}
    deviations = DEVIATIONS
