"""The method against what the paper and its code say (arXiv 2406.16232 and 1706.08840)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestUpgrad(PaperContract):
    method = "upgrad"
    readme = README
    paper = {
        "balancer.name": "upgrad",
        "balancer.reduction": "mean",
    }
    deviations = {}


class TestDualProj(PaperContract):
    method = "dual-proj"
    readme = README
    paper = {
        "balancer.name": "dual-proj",
        "balancer.reduction": "mean",
    }
    deviations = {}
