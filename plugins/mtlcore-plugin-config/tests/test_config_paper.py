"""The method against what the paper and its code say (arXiv 2408.11104)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestConfig(PaperContract):
    method = "config"
    readme = README
    paper = {
        "balancer.name": "config",
    }
    deviations = {}
