"""The method against what the paper and its code say (arXiv 2010.05874)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestGradvac(PaperContract):
    method = "gradvac"
    readme = README
    paper = {
        "balancer.name": "gradvac",
        "balancer.beta": 0.01,
        "balancer.granularity": "all_layer",
    }
    deviations = {"balancer.granularity": "A layer is a parameter here"}
