"""The method against what the paper and its code say (arXiv 1708.06832)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestAdaLoss(PaperContract):
    method = "adaloss"
    readme = README
    paper = {
        "balancer.name": "adaloss",
        "balancer.momentum": NOT_SAID,
        "balancer.normalise": False,
    }
    deviations = {
        "balancer.momentum": "0.99 is our choice",
    }
