"""The method against what the paper and its code say (ECCV 2018)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestDtp(PaperContract):
    method = "dtp"
    readme = README
    paper = {
        "balancer.name": "dtp",
        "balancer.discount": NOT_SAID,
        "balancer.gamma": NOT_SAID,
        "training.evaluate_every": NOT_SAID,
    }
    deviations = {
        "balancer.discount": "`discount = 0.5`, `gamma = 1.0`",
        "balancer.gamma": "`discount = 0.5`, `gamma = 1.0`",
        "training.evaluate_every": "after every epoch (`evaluate_every = 1`)",
    }
