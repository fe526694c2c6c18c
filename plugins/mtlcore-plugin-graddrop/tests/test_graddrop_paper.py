"""The method against what the paper and its code say (arXiv 2010.06808)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestGraddrop(PaperContract):
    method = "graddrop"
    readme = README
    paper = {
        "balancer.name": "graddrop",
        "balancer.leak": 0.0,
        "balancer.scope": "features",
    }
    deviations = {}
