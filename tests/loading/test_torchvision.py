"""A torchvision whose compiled operators do not load is imported all the same, and that is told.

Each case is a process of its own with a small stand-in for torchvision before the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAKES = """
import torch
assert "torchvision" in __name__
{}
__version__ = "9.9"
"""
#: What torchvision does where its library has not defined the operators.
BROKEN = """
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold): ...
@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold): ...
"""
CODE = """
import sys
from mtlcore.loading import torchvision_repaired
try:
    print(torchvision_repaired() is not None, torchvision_repaired() is torchvision_repaired())
    print(sys.modules["torchvision"].__version__)
except Exception as error:
    print(type(error).__name__, error)
"""


def run(folder: Path, body: str) -> tuple[list[str], str]:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(FAKES.format(body))
    paths = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines(), done.stderr


def test_missing_operators_are_defined_and_told_once(tmp_path: Path) -> None:
    printed, told = run(tmp_path, BROKEN)
    assert printed == ["True True", "9.9"]
    assert told.count("built for another torch") == 1


@pytest.mark.slow
def test_a_whole_one_is_left_alone(tmp_path: Path) -> None:
    printed, told = run(tmp_path, "")
    assert printed == ["False True", "9.9"] and not told


@pytest.mark.slow
def test_other_faults_are_not_hidden(tmp_path: Path) -> None:
    printed, _ = run(tmp_path, 'raise RuntimeError("out of luck")')
    assert printed == ["RuntimeError out of luck"]
