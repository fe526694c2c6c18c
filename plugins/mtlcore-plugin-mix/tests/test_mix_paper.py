"""The methods against what the papers say."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import PaperContract

README = Path(__file__).parents[1] / "README.md"


class TestClassMix(PaperContract):
    method = "classmix"
    readme = README
    paper = {"data.augmentations.0.name": "classmix"}
    deviations = {}


class TestDepthMix(PaperContract):
    method = "depthmix"
    readme = README
    paper = {"data.augmentations.0.name": "depthmix"}
    deviations = {}
