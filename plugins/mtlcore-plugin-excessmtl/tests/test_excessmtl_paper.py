"""The method against what the paper and its code say (arXiv 2402.02009)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestExcessmtl(PaperContract):
    method = "excessmtl"
    readme = README
    paper = {
        "balancer.name": "excessmtl",
        "balancer.eta": NOT_SAID,
    }
    deviations = {"balancer.eta": "`eta = 0.01` is the default of the authors' code"}
