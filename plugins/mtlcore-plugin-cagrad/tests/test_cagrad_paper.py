"""The method against what the paper and its code say (arXiv 2110.14048)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestCagrad(PaperContract):
    method = "cagrad"
    readme = README
    paper = {
        "balancer.name": "cagrad",
        "balancer.c": 0.4,
        "balancer.rescale": NOT_SAID,
    }
    deviations = {"balancer.rescale": "the authors' code multiplies it by K / (1 + c²)"}
