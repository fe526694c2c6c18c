"""The method against what the paper and its code say (arXiv 2404.06486)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestGo4Align(PaperContract):
    method = "go4align"
    readme = README
    paper = {
        "balancer.name": "go4align",
        "balancer.groups": 2,
        "balancer.step_size": 0.0001,
    }
    deviations = {}
