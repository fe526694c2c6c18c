"""The records: light to read, complete, and pointing to what exists; errors of the command."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from mtlcore.loading import library
from mtlcore.plugins import settings_of
from mtlcore_transformers import plugin

SMALL = "model.backbone.config={embedding_size=8,hidden_sizes=[8,8,16,16],depths=[1,1,1,1]}"


def test_transformers_is_imported_where_a_backbone_is_built() -> None:
    code = (
        "import sys; from mtlcore_transformers import plugin; list(plugin.mtl_backbones()); "
        "list(plugin.mtl_datasets()); "
        "heavy = {'torch', 'numpy', 'transformers'} & set(sys.modules); "
        "from mtlcore_transformers import images, text, texts; "
        "print(heavy, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() False"


def test_settings_are_explained() -> None:
    for spec in [*plugin.mtl_backbones(), *plugin.mtl_datasets()]:
        assert all(setting.meaning for setting in settings_of(spec.load())), spec.name


def test_show_tells_maps_and_normalisation(mtl: Any) -> None:
    shown = mtl("show", "backbones", "transformers", "--set", SMALL, "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)["backbone"]
    assert told["channels"] == [16, 16, 8, 8] and told["strides"] == [32, 16, 8, 4]
    assert told["parameters"] == told["trainable"] and told["model"] == "resnet"
    assert "ImageNet's" in told["normalisation"]


def test_show_tells_of_an_encoder_of_texts(mtl: Any) -> None:
    small = "model.backbone.config={num_hidden_layers=1,vocab_size=100}"
    shown = mtl("show", "backbones", "transformers-text", "--set", small, "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)["backbone"]
    assert (told["channels"], told["model"]) == ([768], "bert")
    wrong = mtl("show", "backbones", "transformers-text", "--set", "model.backbone.modle=x")
    assert wrong.exit_code == 2 and "did you mean 'model'" in wrong.stderr


def test_a_run_on_images(mtl: Any, tmp_path: Any) -> None:
    done = mtl(
        "run", "--set=data.train=4", "--set=data.val=2", "--set=data.size=70x90",
        "--set=data.workers=0", "--set=training.epochs=1", "--set=training.batch_size=2",
        "--set=device=cpu", "--set=model.backbone.name=transformers", f"--set={SMALL}",
        "--set=model.head.name=segformer-mlp", "--set=model.head.channels=8",
        f"--out={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "run" / "run.json").read_text())["backbone"]
    assert about["model"] == "resnet" and "weights" not in about


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("model=resnett", "it is no model type of transformers either; did you mean 'resnet'"),
        ("config.depth=[1]", "model.backbone.config.depth: resnet has no such value"),
        ("weights=/no/file", "/no/file: no such file"),
        ("width=2", "model.backbone.width: unknown setting"),
    ],
)
def test_what_is_wrong_is_told(mtl: Any, option: str, told: str) -> None:
    done = mtl(
        "run", "--set=model.backbone.name=transformers", f"--set=model.backbone.{option}",
        "--set=data.train=2", "--set=data.val=1", "--dry-run",
    )  # fmt: skip
    assert done.exit_code in (1, 2), done.output
    assert told in done.stderr and "Traceback" not in done.stderr


def test_without_transformers_the_line_to_install_it_is_told(
    mtl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'transformers'")

    library.cache_clear()
    monkeypatch.setattr("mtlcore.loading.torchvision.torchvision_repaired", missing)
    done = mtl("run", "--set=model.backbone.name=transformers", "--dry-run")
    library.cache_clear()
    assert done.exit_code == 1
    assert "No module named 'transformers'); pip install transformers" in done.stderr
