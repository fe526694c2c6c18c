"""Mean teacher against what its authors' code says, for CIFAR-10."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract


class TestMeanTeacher(PaperContract):
    method = "mean-teacher"
    readme = Path(__file__).parents[1] / "README.md"
    paper = {
        "cross_task.0.name": "mean-teacher",
        "cross_task.0.weight": 100.0,
        "cross_task.0.ramp": 40_000 / 150_000,
        "training.ema": 0.999,
        "training.evaluate_ema": True,
        "data.augment.scales": NOT_SAID,
        "data.augment.flip": True,
    }
    deviations = {
        "cross_task.0.weight": "weight of 1, where the authors' code has 100",
        "cross_task.0.ramp": "a quarter of the run",
        "data.augment.scales": "crops that are enlarged by up to 1.5",
    }
