"""The main job, as a newcomer starts it: minutes long, and what it must reach."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def summary(out: Path, *arguments: str) -> dict:
    command = [sys.executable, "-m", "mtlcore", "run", "--plugin", "atinet", "--out", str(out)]
    result = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads((out / "summary.json").read_text())


def test_the_demo_finds_furniture(tmp_path: Path) -> None:
    """Well beyond the best picture for all images, which knows floor, walls and ceiling."""
    found = summary(tmp_path / "demo")
    model, pixel = found["final"]["val"], found["constants"]["pixel"]
    assert model["segmentation"]["miou"] >= 0.25
    assert model["depth"]["abs_error"] <= 0.72 * pixel["depth"]["abs_error"]
    assert model["normals"]["mean_angle"] <= 23


def test_real_photographs_beat_the_global_constant(
    tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    root = real_data("tabletop")
    found = summary(
        tmp_path / "tabletop",
        "--set=data.name=folder",
        f"--set=data.root={root}",
        "--set=data.spec=examples/tabletop.toml",
    )
    model, constant = found["final"]["val"], found["constants"]["global"]
    assert set(model) == {"segmentation", "depth", "normals"}
    assert model["segmentation"]["miou"] > constant["segmentation"]["miou"]
    assert model["depth"]["abs_error"] < constant["depth"]["abs_error"]
    assert model["normals"]["mean_angle"] < constant["normals"]["mean_angle"]
    assert model["normals"]["median_angle"] < constant["normals"]["median_angle"]
