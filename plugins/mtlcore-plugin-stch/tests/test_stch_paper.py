"""The method against what the paper and its code say (arXiv 2402.19078)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestStch(PaperContract):
    method = "stch"
    readme = README
    paper = {
        "balancer.name": "stch",
        "balancer.form": "log",
        "balancer.mu": 1.0,
        "balancer.warmup": 4,
    }
    deviations = {}
