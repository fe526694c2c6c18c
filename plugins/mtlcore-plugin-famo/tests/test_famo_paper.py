"""The method against what the paper and its code say (arXiv 2306.03792)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestFamo(PaperContract):
    method = "famo"
    readme = README
    paper = {
        "balancer.name": "famo",
        "balancer.lr": 0.025,
        "balancer.weight_decay": 0.001,
    }
    deviations = {}
