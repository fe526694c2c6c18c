"""The method against what the paper and its code say (arXiv 2308.12029)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestDbmtl(PaperContract):
    method = "dbmtl"
    readme = README
    paper = {
        "balancer.name": "db-mtl",
        "balancer.beta": NOT_SAID,
        "balancer.sigma": NOT_SAID,
    }
    deviations = {
        "balancer.beta": "are the defaults of LibMTL, the first author's library",
        "balancer.sigma": "are the defaults of LibMTL, the first author's library",
    }
