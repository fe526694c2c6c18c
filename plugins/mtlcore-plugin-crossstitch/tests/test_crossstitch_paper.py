"""The published methods against the papers (arXiv 1604.03539 and 1705.08142)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"
# Neither paper trains this network on these tasks.
RECIPE: dict[str, Any] = {
    "model.backbone.backbone.name": NOT_SAID,
    "model.backbone.backbone.width": NOT_SAID,
    "model.backbone.exchange_at": NOT_SAID,
    "balancer.name": "equal",
    "optimizer.name": NOT_SAID,
    "optimizer.lr": NOT_SAID,
    "optimizer.schedule.name": NOT_SAID,
    "optimizer.schedule.at": NOT_SAID,
    "optimizer.schedule.gamma": NOT_SAID,
    "training.batch_size": NOT_SAID,
    "training.epochs": NOT_SAID,
    "training.evaluate_every": NOT_SAID,
    "training.average_last": NOT_SAID,
}
OURS = "The methods with `-nyuv2` train as MTAN's paper does where it compares networks"
PLACES = "Maps of `segnet` and `unet` are mixed before pooling, and those of their decoders too."
DEVIATIONS = {
    **{setting: OURS for setting, value in RECIPE.items() if value is NOT_SAID},
    "model.backbone.exchange_at": PLACES,
}


class TestCrossStitch(PaperContract):
    method = "cross-stitch-nyuv2"
    readme = README
    paper = {
        **RECIPE,
        "model.backbone.name": "cross-stitch",
        "model.backbone.own": 0.9,
        "model.backbone.per": "channel",
        "model.backbone.unit_rate": 100.0,
    }
    deviations = DEVIATIONS


class TestSluice(PaperContract):
    method = "sluice-nyuv2"
    readme = README
    paper = {
        **RECIPE,
        "model.backbone.name": "sluice",
        "model.backbone.subspaces": 2,
        "model.backbone.own": NOT_SAID,
        "model.backbone.last": 0.9,
        "model.backbone.orthogonality": 0.1,
        "model.backbone.unit_rate": NOT_SAID,
    }
    deviations = {
        **DEVIATIONS,
        "model.backbone.own": "the paper only asks for a bias towards one subspace",
        "model.backbone.orthogonality": "The methods here set 1e-3",
        "model.backbone.unit_rate": "all learn at one rate",
    }
