"""The method against what the paper and its code say (arXiv 2210.12624)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestMoco(PaperContract):
    method = "moco"
    readme = README
    paper = {
        "balancer.name": "moco",
        "balancer.beta": NOT_SAID,
        "balancer.gamma": NOT_SAID,
        "balancer.rho": NOT_SAID,
    }
    deviations = {
        "balancer.beta": "all 0.1, as in the authors' code",
        "balancer.gamma": "all 0.1, as in the authors' code",
        "balancer.rho": "all 0.1, as in the authors' code",
    }
