"""The method against what the paper says (arXiv 1912.12854)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestParetoMTL(PaperContract):
    method = "paretomtl"
    readme = README
    paper = {
        "balancer.name": "pareto-mtl",
        "balancer.preferences": 5,
        "balancer.initial": NOT_SAID,
        "balancer.weigh_heads": NOT_SAID,
    }
    deviations = {
        "balancer.initial": "at most a fiftieth of the run, 2 of 100 epochs",
        "balancer.weigh_heads": "weights apply to heads as well",
    }
