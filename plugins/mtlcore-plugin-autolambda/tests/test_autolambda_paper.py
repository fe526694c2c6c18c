"""The method against what the paper and its code say (arXiv 2202.03091)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestAutoLambda(PaperContract):
    method = "auto-lambda"
    readme = README
    paper = {
        "balancer.name": "auto-lambda",
        "balancer.lr": 0.0001,
        "balancer.initial": 0.1,
        "balancer.split": "train",
    }
    deviations = {}
