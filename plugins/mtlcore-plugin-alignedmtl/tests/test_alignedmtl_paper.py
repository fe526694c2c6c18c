"""The method against what the paper and its code say (arXiv 2305.19000)."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestAlignedmtl(PaperContract):
    method = "alignedmtl"
    readme = README
    paper = {
        "balancer.name": "aligned-mtl",
        "balancer.scale": "min",
        "balancer.scope": "shared",
        "balancer.reduction": "mean",
    }
    deviations = {"balancer.reduction": "the code adds the aligned gradients up"}


class TestAlignedmtlUb(PaperContract):
    method = "alignedmtl-ub"
    readme = README
    paper = {
        "balancer.name": "aligned-mtl",
        "balancer.scale": "min",
        "balancer.scope": "features",
        "balancer.reduction": "mean",
    }
    deviations = {"balancer.reduction": "the code adds the aligned gradients up"}
