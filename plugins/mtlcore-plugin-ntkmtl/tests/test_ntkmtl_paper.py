"""The method against what the paper and its code say (arXiv 2510.18258)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestNtkmtl(PaperContract):
    method = "ntkmtl"
    readme = README
    paper = {
        "balancer.name": "ntkmtl",
        "balancer.exponent": 0.5,
        "balancer.batches": 1,
        "balancer.rescale": NOT_SAID,
        "balancer.max_norm": NOT_SAID,
    }
    deviations = {
        "balancer.rescale": "multiplies the update by K",
        "balancer.max_norm": "clips it to a norm of 1",
    }
