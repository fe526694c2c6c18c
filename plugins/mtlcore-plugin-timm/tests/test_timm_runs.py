"""Runs on encoders of timm: what is recorded, resumed without the file, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlcore.loading import library
from mtlcore_timm.library import timm

SMALL = [
    "--set=data.train=4", "--set=data.val=2", "--set=data.size=64x64", "--set=data.workers=0",
    "--set=training.epochs=1", "--set=training.batch_size=2", "--set=device=cpu",
    "--set=model.backbone.name=timm",
]  # fmt: skip


def of(model: str, *more: str) -> list[str]:
    return [*SMALL, f"--set=model.backbone.model={model}", *more]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": timm().create_model("test_resnet").state_dict()}, path)
    return path


def test_a_run_tells_its_weights_and_is_used_without_the_file(
    mtl: Any, weights: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    options = of(
        "test_resnet", f"--set=model.backbone.weights={weights}", "--set=tasks=['depth']",
        f"--out={out}",
    )  # fmt: skip
    done = mtl("run", *options)
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "run" / "run.json").read_text())["backbone"]
    assert about["model"] == "test_resnet.r160_in1k"
    assert about["weights"] == str(weights) and len(about["weights_sha256"]) == 64
    weights.unlink()
    joined = mtl(
        "adapt", out, "--tasks=normals", "--train=heads", f"--out={tmp_path / 'more'}",
        "--set=training.steps=1",
    )  # fmt: skip
    assert joined.exit_code == 0, joined.output
    judged = mtl("eval", out)
    assert judged.exit_code == 0, judged.output
    (tmp_path / "run" / "summary.json").unlink()
    resumed = mtl("run", "--resume", f"--out={out}")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["backbone"] == about
    again = mtl("run", *options[:-1], f"--out={tmp_path / 'again'}")
    assert again.exit_code == 1 and f"{weights}: no such file" in again.stderr


def test_show_tells_maps_licence_and_normalisation(mtl: Any) -> None:
    shown = mtl("show", "backbones", "timm", "--set", "model.backbone.model=resnet18", "--json")
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["backbone"] == {
        "channels": [512, 256, 128, 64],
        "strides": [32, 16, 8, 4],
        "parameters": 11_176_512,
        "trainable": 11_176_512,
        "model": "resnet18.a1_in1k",
        "normalisation": "mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)",
        "licence": "apache-2.0 (timm's weights of this name)",
    }
    assert "licence = " in mtl("show", "backbones", "timm", "--set", "seed=1").stdout


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (of("resnt18"), 2, "model.backbone.model: timm has no model 'resnt18'; did you mean"),
        (of("test_resnet", "--set=model.backbone.in_chans=4"), 2, "set it to 3"),
        (of("test_resnet", "--set=model.backbone.weights=/no/file"), 1, "/no/file: no such file"),
        (of("test_resnet", "--set=model.backbone.width=2"), 2, "model.backbone.width: unknown"),
    ],
)
def test_what_is_wrong_is_told(mtl: Any, options: list[str], code: int, told: str) -> None:
    done = mtl("run", *options, "--dry-run")
    assert done.exit_code == code, done.output
    assert told in done.stderr and "Traceback" not in done.stderr


def test_without_timm_the_line_to_install_it_is_told(
    mtl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'torchvision'")

    library.cache_clear()
    monkeypatch.setattr("mtlcore.loading.torchvision.torchvision_repaired", missing)
    done = mtl("run", *of("test_resnet"), "--dry-run")
    assert done.exit_code == 1
    assert "No module named 'torchvision'); pip install timm torchvision" in done.stderr
