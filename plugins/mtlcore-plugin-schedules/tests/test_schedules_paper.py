"""The methods against what the papers say."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import NOT_SAID, PaperContract

README = Path(__file__).parents[1] / "README.md"
_EVALUATED = {"training.evaluate_every": "`evaluate_every = 1`"}


class TestActive(PaperContract):
    method = "active"
    readme = README
    paper = {
        "episodes.name": "active",
        "episodes.temperature": NOT_SAID,
        "episodes.window": NOT_SAID,
    }
    deviations = {
        "episodes.temperature": "`temperature = 0.05` and `window = 10` are our choice",
        "episodes.window": "`temperature = 0.05` and `window = 10` are our choice",
    }


class TestStopAndGo(PaperContract):
    method = "stop-and-go"
    readme = README
    paper = {
        "episodes.name": "stop-and-go",
        "episodes.stop": 0.001,
        "episodes.go": 0.005,
        "episodes.gap": 4,
        "training.evaluate_every": NOT_SAID,
    }
    deviations = _EVALUATED


class TestTcdcn(PaperContract):
    method = "tcdcn"
    readme = README
    paper = {"episodes.name": "tcdcn", "training.evaluate_every": NOT_SAID}
    deviations = _EVALUATED
