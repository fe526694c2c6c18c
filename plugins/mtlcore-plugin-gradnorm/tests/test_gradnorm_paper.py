"""The method against what the paper and its code say (arXiv 1711.02257)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestGradnorm(PaperContract):
    method = "gradnorm"
    readme = README
    paper = {
        "balancer.name": "gradnorm",
        "balancer.alpha": 1.5,
        "balancer.lr": 0.025,
    }
    deviations = {}
