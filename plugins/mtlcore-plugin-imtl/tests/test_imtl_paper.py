"""The method against what the paper and its code say (OpenReview IMPnRXEWpvr)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestImtl(PaperContract):
    method = "imtl"
    readme = README
    paper = {
        "balancer.chain.0.name": "imtl-l",
        "balancer.chain.1.name": "imtl-g",
        "balancer.chain.1.scope": "features",
    }
    deviations = {}


class TestImtlG(PaperContract):
    method = "imtl-g"
    readme = README
    paper = {
        "balancer.name": "imtl-g",
        "balancer.scope": "features",
    }
    deviations = {}


class TestImtlL(PaperContract):
    method = "imtl-l"
    readme = README
    paper = {
        "balancer.name": "imtl-l",
    }
    deviations = {}
