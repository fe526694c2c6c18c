"""The method against what the paper and its code say (arXiv 2305.18409 and 2305.20057)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestSdmgrad(PaperContract):
    method = "sdmgrad"
    readme = README
    paper = {
        "balancer.name": "sdmgrad",
        "balancer.lam": NOT_SAID,
        "balancer.batches": 3,
    }
    deviations = {"balancer.lam": "Their scripts and the method have `lam = 0.3`"}


class TestModo(PaperContract):
    method = "modo"
    readme = README
    paper = {
        "balancer.name": "modo",
        "balancer.gamma": NOT_SAID,
        "balancer.rho": NOT_SAID,
    }
    deviations = {
        "balancer.gamma": "`gamma = rho = 0.1` are those of the authors' code",
        "balancer.rho": "`gamma = rho = 0.1` are those of the authors' code",
    }
