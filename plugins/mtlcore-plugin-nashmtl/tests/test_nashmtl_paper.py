"""The method against what the paper says (arXiv 2202.01017)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestNashMTL(PaperContract):
    method = "nashmtl"
    readme = README
    paper = {
        "balancer.name": "nash-mtl",
        "balancer.update_every": 1,
        "balancer.max_norm": NOT_SAID,
        "balancer.weigh_heads": NOT_SAID,
    }
    deviations = {
        "balancer.max_norm": "The limit of 1 on the norm of the update",
        "balancer.weigh_heads": "the weights on heads are those of the published code",
    }
