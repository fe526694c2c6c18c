"""The methods against what the papers say, which train on nothing but the two views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"
VIEWS: dict[str, Any] = {
    "data.augment.scales": NOT_SAID,
    "data.augment.flip": True,
    "cross_task.0.weight": NOT_SAID,
}
DEVIATIONS = {
    "data.augment.scales": "crops that are enlarged by up to 1.5",
    "cross_task.0.weight": "a weight of 0.1 is ours",
}


class TestSimCLR(PaperContract):
    method = "simclr"
    readme = README
    paper = VIEWS | {"cross_task.0.temperature": 0.1, "cross_task.0.outputs": 128}
    deviations = DEVIATIONS


class TestBYOL(PaperContract):
    method = "byol"
    readme = README
    paper = VIEWS | {
        "cross_task.0.decay": 0.996,
        "cross_task.0.hidden": 4096,
        "cross_task.0.outputs": 256,
        "training.ema": 0.996,
    }
    deviations = DEVIATIONS


class TestMTSS(PaperContract):
    method = "mtss"
    readme = README
    paper = VIEWS | {"cross_task.0.outputs": NOT_SAID}
    deviations = DEVIATIONS | {"cross_task.0.outputs": "the projector is ours"}
