"""The methods on the census table against what is published of them."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"
# Of keras-mmoe, and of this plugin's two methods alike.
_CENSUS = {
    "tasks": ["income", "never_married"],
    "data.name": "tabular",
    "data.file": "census-income.{split}.gz",
    "data.categorical": [2, 3],
    "data.ignore": [],
    "data.val_fraction": None,
    "data.train": 199_523,
    "data.val": 49_881,
    "data.targets.income.column": 41,
    "data.targets.never_married.column": 7,
    "model.backbone.inputs": NOT_SAID,
    "model.backbone.hidden": [4],
    "model.backbone.tower": [8],
    "model.head.name": "linear",
    "balancer.name": "equal",
    "optimizer.name": "adam",
    "optimizer.lr": 1e-3,
    "training.batch_size": 32,
    "training.epochs": 100,
}
_DEVIATIONS = {
    "data.file": "the published test half alone",
    "data.categorical": "so are the codes of own business and of veterans",
    "data.ignore": "the weight of a row in the population is no input",
    "data.val_fraction": "a fifth of its rows is kept for validation",
    "data.train": "the published test half alone",
    "data.val": "the published test half alone",
    "model.backbone.inputs": "A row has 500 values",
}


class TestMMoEOnTheCensus(PaperContract):
    """Against keras-mmoe, since the paper tunes its networks and prints no sizes for the census."""

    method = "mmoe-census"
    readme = README
    paper = _CENSUS | {"model.backbone.name": "mmoe", "model.backbone.experts": 8}
    deviations = _DEVIATIONS


class TestPLEOnTheCensus(PaperContract):
    """In MMoE's recipe, since the data of PLE's paper are not published."""

    method = "ple-census"
    readme = README
    paper = _CENSUS | {
        "model.backbone.name": "ple",
        "model.backbone.levels": NOT_SAID,
        "model.backbone.shared": NOT_SAID,
        "model.backbone.own": NOT_SAID,
    }
    deviations = _DEVIATIONS | dict.fromkeys(
        ("model.backbone.levels", "model.backbone.shared", "model.backbone.own"),
        "tunes the numbers of experts to each of its data sets",
    )
