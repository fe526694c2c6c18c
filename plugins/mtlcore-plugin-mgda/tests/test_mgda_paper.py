"""The method against what the paper and its code say (arXiv 1810.04650)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestMgda(PaperContract):
    method = "mgda"
    readme = README
    paper = {
        "balancer.name": "mgda",
        "balancer.scope": "shared",
        "balancer.normalise": "none",
        "balancer.weigh_heads": NOT_SAID,
    }
    deviations = {"balancer.weigh_heads": "so parameters of one task alone are weighted too"}


class TestMgdaUb(PaperContract):
    method = "mgda-ub"
    readme = README
    paper = {
        "balancer.name": "mgda",
        "balancer.scope": "features",
        "balancer.normalise": "none",
        "balancer.weigh_heads": NOT_SAID,
    }
    deviations = {"balancer.weigh_heads": "so parameters of one task alone are weighted too"}
