"""The method against what the paper and its code say (arXiv 2103.02631)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestRotoGrad(PaperContract):
    method = "rotograd"
    readme = README
    paper = {
        "model.backbone.name": "rotograd",
        "model.backbone.backbone.name": NOT_SAID,
        "model.backbone.backbone.width": NOT_SAID,
        "model.backbone.rotation_lr": NOT_SAID,
        "balancer.name": "rotograd",
        "balancer.burn_in": 20,
    }
    deviations = {
        "model.backbone.backbone.name": "the core's default network, `segnet` of width 0.0625",
        "model.backbone.backbone.width": "the core's default network, `segnet` of width 0.0625",
        "model.backbone.rotation_lr": "`rotation_lr = 5e-4` is our choice",
    }
