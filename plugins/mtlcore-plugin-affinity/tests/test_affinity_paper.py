"""TAG against what the paper says."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract


class TestTag(PaperContract):
    method = "tag"
    readme = Path(__file__).parents[1] / "README.md"
    paper = {
        "optimizer.name": "affinity",
        "optimizer.every": 10,
        "optimizer.optimizer.name": NOT_SAID,
        "optimizer.optimizer.lr": NOT_SAID,
    }
    deviations = {
        "optimizer.optimizer.name": "Adam with a rate of 1e-3",
        "optimizer.optimizer.lr": "Adam with a rate of 1e-3",
    }
