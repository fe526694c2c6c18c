"""The method against what the paper and its code say (arXiv 2402.15638)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestFairgrad(PaperContract):
    method = "fairgrad"
    readme = README
    paper = {
        "balancer.name": "fairgrad",
        "balancer.alpha": NOT_SAID,
        "balancer.rescale": NOT_SAID,
        "balancer.max_norm": NOT_SAID,
    }
    deviations = {
        "balancer.alpha": "alpha is 2 in all four scripts of the authors",
        "balancer.rescale": "multiplies the update by K",
        "balancer.max_norm": "clips it to a norm of 1",
    }
