"""The methods on NYUD against what the papers' code says (srebuffi/residual_adapters)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlcore.testing import NOT_SAID, PaperContract

pytest.importorskip("mtlcore_timm", reason="mtlcore-plugin-timm is not installed")

README = Path(__file__).parents[1] / "README.md"
TASKS = ("segmentation", "depth", "normals", "edges")
PAPER: dict[str, Any] = {
    "tasks": "ten sets of images, a classification each",
    "data.name": "the Visual Decathlon",
    "data.size": [64, 64],
    "data.augment.scales": NOT_SAID,
    "data.augment.flip": True,
    "model.backbone.name": "residual-adapters",
    "model.backbone.encoder.name": "resnet26",
    "model.backbone.encoder.weights": "pretrained",
    "model.backbone.encoder.out_indices": [-1],
    "model.backbone.encoder.options.output_stride": 2,
    "model.backbone.frozen": True,
    "model.head.name": "linear",
    "losses.edges.positive_weight": NOT_SAID,
    "balancer.name": "equal",
    **{f"balancer.weights.{task}": NOT_SAID for task in TASKS},
    "optimizer.name": "sgd",
    "optimizer.lr": 0.1,
    "optimizer.weight_decay": 5e-4,
    "optimizer.schedule.name": "step",
    "optimizer.schedule.power": NOT_SAID,
    "training.batch_size": 128,
    "training.epochs": 120,
}
OURS = "The methods on NYUD train by the recipe"
RECIPE = (
    "data.augment.scales",
    "model.head",
    "losses",
    "balancer",
    "optimizer",
    "training",
    "model.backbone.encoder.options",
)
DEVIATIONS = {
    **dict.fromkeys(
        ("tasks", "data.name", "data.size"),
        "classification of ten sets of images",
    ),
    "model.backbone.encoder.name": "a ResNet of 26 layers",
    **dict.fromkeys((s for s in PAPER if s.startswith(RECIPE)), OURS),
}


@pytest.fixture(autouse=True)
def _with_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTL_PLUGINS", "residual-adapters,timm")


class TestInParallel(PaperContract):
    method = "residual-adapters-nyud"
    readme = README
    paper = {**PAPER, "model.backbone.placement": "parallel"}
    deviations = DEVIATIONS


class TestInSeries(PaperContract):
    method = "series-adapters-nyud"
    readme = README
    paper = {**PAPER, "model.backbone.placement": "series"}
    deviations = DEVIATIONS
