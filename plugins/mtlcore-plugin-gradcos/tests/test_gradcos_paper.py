"""The method against what the paper and its code say (arXiv 1812.02224)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestGradcos(PaperContract):
    method = "gradcos"
    readme = README
    paper = {
        "balancer.name": "gradcos",
        "balancer.weighted": True,
    }
    deviations = {}
