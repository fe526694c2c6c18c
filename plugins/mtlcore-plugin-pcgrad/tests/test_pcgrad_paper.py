"""The method against Algorithm 1 of the paper (arXiv 2001.06782)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestPCGrad(PaperContract):
    method = "pcgrad"
    readme = README
    paper = {
        "balancer.name": "pcgrad",
        "balancer.order": "random",
        "balancer.reduction": "sum",
    }
