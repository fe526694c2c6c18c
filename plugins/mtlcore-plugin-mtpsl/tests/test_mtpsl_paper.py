"""The published methods against what the paper says (arXiv 2111.14893)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlcore.testing import NOT_SAID, PaperContract

LOSS: dict[str, Any] = {
    "cross_task.0.name": "mtpsl",
    "cross_task.0.weight": 1.0,
    "cross_task.0.regulariser": 1.0,
    "cross_task.0.normalisation": "mean",
    "cross_task.0.code": "different",
    "cross_task.0.views": NOT_SAID,
    "data.labels": "one",
    "training.normalisation": "labelled",
}
# "As MTAN", whose network is SegNet, split at the heads.
AS_MTAN: dict[str, Any] = {
    **LOSS,
    "data.augment.scales": [1.0, 1.2, 1.5],
    "model.backbone.name": "segnet",
    "model.backbone.width": 1.0,
    "model.head.name": "conv",
    "losses.segmentation.name": "cross-entropy",
    "cross_task.0.mapping.lr": 1e-4,
    "cross_task.0.mapping.schedule.at": [0.5],
    "cross_task.0.mapping.schedule.gamma": 0.5,
    "cross_task.0.film.lr": NOT_SAID,
    "cross_task.0.film.schedule.at": NOT_SAID,
    "cross_task.0.film.schedule.gamma": NOT_SAID,
    "balancer.name": "equal",
    "optimizer.name": "adam",
    "optimizer.lr": 1e-4,
    "optimizer.schedule.name": "step",
    "optimizer.schedule.at": [0.5],
    "optimizer.schedule.gamma": 0.5,
    "training.epochs": 200,
    "training.evaluate_every": 1,
}
FILM = "FiLM's learning rate (1e-3 on NYUv2, 1e-5 on Cityscapes), halved every 30 epochs"
CODE = {
    "cross_task.0.regulariser": "The paper has `weight = 1`, `regulariser = 1`",
    "cross_task.0.normalisation": '`normalisation = "mean"`',
    "cross_task.0.code": '`code = "different"`. The code',
    "cross_task.0.views": "and the two views; the paper does not speak of them",
    "cross_task.0.film.lr": FILM,
    "cross_task.0.film.schedule.at": FILM,
    "cross_task.0.film.schedule.gamma": FILM,
    "training.normalisation": "The paper also divides supervised losses by the number of labelled",
}
README = Path(__file__).parents[1] / "README.md"


class TestNYUv2(PaperContract):
    method = "mtpsl-nyuv2"
    readme = README
    paper = {
        **AS_MTAN,
        "tasks": ["segmentation", "depth", "normals"],
        "data.name": "nyuv2",
        "losses.depth.name": "l1",
        "losses.normals.name": "cosine",
        "training.batch_size": 2,
    }
    deviations = {**CODE, "cross_task.0.weight": "The code's weight is 2 on NYUv2"}


class TestCityscapes(PaperContract):
    method = "mtpsl-cityscapes"
    readme = README
    paper = {
        **AS_MTAN,
        "tasks": ["segmentation", "depth"],
        "data.name": "cityscapes",
        "data.classes": 7,
        "losses.inverse_depth.name": "l1",
        "training.batch_size": 8,
    }
    deviations = {**CODE, "tasks": "Cityscapes' depth is inverse depth, and is called so"}


class TestPascal(PaperContract):
    """The loss is the paper's, all else is Vandenhende's, which the paper refers to."""

    method = "mtpsl-pascal"
    readme = README
    paper = {
        **LOSS,
        "tasks": ["segmentation", "human_parts", "normals", "saliency", "edges"],
        "data.name": "pascal-context",
        "data.size": [512, 512],
        "data.augment.flip": True,
        "data.augmentations.0.degrees": 20.0,
        "data.augmentations.0.scales": [0.75, 1.25],
        "model.backbone.name": "resnet",
        "model.backbone.depth": 18,
        "model.backbone.output_stride": 8,
        "model.backbone.width": 1.0,
        "model.head.name": "deeplab",
        "model.head.rates": [12, 24, 36],
        "model.head.channels": 256,
        "losses.normals.name": "normals-l1",
        "losses.saliency.positive_weight": "the share of negatives in the batch",
        "losses.saliency.divide_by": "number",
        "losses.edges.positive_weight": 0.95,
        "losses.edges.divide_by": "number",
        "metrics.saliency.name": "saliency-iou",
        "cross_task.0.encoder": "resnet-18",
        "balancer.weights.segmentation": 1,
        "balancer.weights.human_parts": 2,
        "balancer.weights.normals": 10,
        "balancer.weights.saliency": 5,
        "balancer.weights.edges": 50,
        "optimizer.name": "adam",
        "optimizer.lr": 1e-4,
        "optimizer.weight_decay": 1e-4,
        "optimizer.schedule.name": "poly",
        "optimizer.schedule.power": 0.9,
        "training.batch_size": 6,
        "training.epochs": 100,
    }
    deviations = {
        "cross_task.0.views": "Ours there: one view",
        "losses.saliency.positive_weight": "saliency's positives and negatives count alike",
    }
