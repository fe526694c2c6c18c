"""Commands on a machine whose memory does not suffice: a message, and no traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Answered = Callable[..., tuple[int, str]]
MEBIBYTE = 2**20
TINY = [
    "--set=tasks=['segmentation', 'depth']", "--set=data.workers=0", "--set=training.threads=1",
    "--set=data.train=2", "--set=data.val=1", "--set=training.steps=1",
]  # fmt: skip
SMALL, LARGE = "--set=model.backbone.width=0.03125", "--set=model.backbone.width=16"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["--set=data.size=10000x10000", SMALL], id="samples"),
        pytest.param(["--set=data.size=32x32", LARGE], id="network"),
        pytest.param(["--set=data.size=32x32", SMALL, "--set=data.train=100000000"], id="plans"),
    ],
)
def test_what_cannot_fit_ends_in_a_message(
    settings: list[str], answered: Answered, tmp_path: Path
) -> None:
    words = ["run", *TINY, *settings, "--out=run"]
    code, said = answered(words, tmp_path, 60, 256 * MEBIBYTE)
    assert code == 1 and "Traceback" not in said, said
    assert "mtl: the memory of this machine does not suffice" in said, said
    assert "Lower training.batch_size" in said


@pytest.mark.slow
@pytest.mark.parametrize("memory", [16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256])
@pytest.mark.parametrize("command", ["run", "eval", "adapt"])
def test_whatever_there_is_suffices_or_is_told(
    command: str, memory: int, answered: Answered, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    words = {
        "run": ["run", *TINY, SMALL, "--set=data.size=256x320", "--out=new"],
        "eval": ["eval", "run", "--set=data.size=256x320"],
        "adapt": [
            "adapt", "run", "--tasks=normals", "--out=new", "--set=data.size=256x320",
            "--set=training.steps=1",
        ],
    }[command]  # fmt: skip
    code, said = answered(words, tmp_path, 60, memory * MEBIBYTE)
    assert "Traceback" not in said, said
    assert code == 0 or (code == 1 and "memory of this machine does not suffice" in said), said
