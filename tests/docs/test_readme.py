"""What the README promises runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = (Path(__file__).parents[2] / "README.md").read_text()
TINY = [
    "--set=data.train=4",
    "--set=data.val=2",
    "--set=data.size=32x32",
    "--set=training.epochs=2",
    "--set=training.batch_size=2",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    joined = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip()]


def mtl(command: str, cwd: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the README by a shell, with arguments that make it small."""
    line = command.replace("mtl ", f"{sys.executable} -m mtlcore ", 1)
    return subprocess.run(
        " ".join([line, *more]),
        shell=True,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_is_covered_here() -> None:
    assert [command for command in commands() if command.startswith("mtl ")] == [
        "mtl run --plugin atinet",
        CHECK,
        PRETRAINED,
        PHOTOGRAPHS,
        OWN_BALANCER,
    ]


CHECK = "mtl data check photographs"
PRETRAINED = "mtl run --plugin photographs --set data.root=photographs"
PHOTOGRAPHS = (
    "mtl run --plugin atinet --set data.name=folder --set data.root=photographs"
    "      --set \"tasks=['segmentation', 'depth']\""
)
OWN_BALANCER = "mtl run --plugin atinet --plugin ./agreement.py"


def test_own_balancer(tmp_path: Path) -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (tmp_path / "agreement.py").write_text(code)
    result = mtl(OWN_BALANCER, tmp_path, *TINY)
    assert result.returncode == 0, result.stderr
    assert "agreement" in result.stderr  # it says what it replaced
    summary = json.loads((tmp_path / "runs/atinet+agreement-1/summary.json").read_text())
    assert summary["steps"] == 4


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Photographs as the README describes them."""
    root = tmp_path / "photographs"
    random = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 2)):
        for i in range(number):
            maps = {
                "rgb": random.integers(0, 256, (48, 64, 3), dtype=np.uint8),
                "segmentation": random.choice(np.array([0, 1, 255], np.uint8), (48, 64)),
                "depth": random.integers(0, 3000, (48, 64)).astype(np.uint16),
            }
            for kind, values in maps.items():
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(root / split / kind / f"{i}.png")
    (spec,) = blocks("toml")
    (root / "dataset.toml").write_text(spec)
    return tmp_path


def test_a_look_at_the_photographs(photographs: Path) -> None:
    result = mtl(CHECK, photographs)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing wrong was found" in result.stdout
    assert (photographs / "data-check.html").exists()


def test_own_photographs_with_a_pretrained_encoder(photographs: Path) -> None:
    """Its weights, which it downloads, are random here."""
    encoder = ["--set=model.backbone.model=test_resnet", "--set=model.backbone.weights=none"]
    result = mtl(PRETRAINED, photographs, *TINY, *encoder)
    assert result.returncode == 0, result.stderr
    summary = json.loads((photographs / "runs/photographs-1/summary.json").read_text())
    assert set(summary["final"]["val"]) == {"segmentation", "depth"}


def test_own_photographs(photographs: Path) -> None:
    result = mtl(PHOTOGRAPHS, photographs, *TINY)
    assert result.returncode == 0, result.stderr
    summary = json.loads((photographs / "runs/atinet-1/summary.json").read_text())
    assert set(summary["final"]["val"]) == {"segmentation", "depth"}
    assert summary["units"] == {"depth": "m"}
