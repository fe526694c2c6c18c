"""Weights: whatever their names, they land where they belong, or the file is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from mtlcore.errors import MtlError, UsageError
from mtlcore.testing import TINY_TASKS
from mtlcore_timm.backbone import TimmBackbone
from mtlcore_timm.library import timm

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def published() -> State:
    """A whole model's state dict, with its classifier."""
    torch.manual_seed(3)
    state = timm().create_model("test_resnet").state_dict()
    return {key: torch.randint_like(value, 1, 9) for key, value in state.items()}


def made(weights: str, **settings: Any) -> TimmBackbone:
    return TimmBackbone(TINY_TASKS, **{"model": "test_resnet", "weights": weights, **settings})


def wrapped(state: State, how: str) -> Any:
    """The forms in which programs publish weights."""
    bare = {key: value for key, value in state.items() if "num_batches" not in key}
    return {
        "plain": state,
        "old": bare,
        "module": {f"module.{key}": value for key, value in state.items()},
        "checkpoint": {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        "average": {"model": {}, "model_ema": state},
        "prefix": {f"backbone.net.{key}": value for key, value in state.items()},
        "foreign": {f"layer_{i}": value for i, value in enumerate(bare.values())},
    }[how]


@pytest.mark.parametrize(
    "how", ["plain", "old", "module", "checkpoint", "average", "prefix", "foreign"]
)
def test_names_are_understood(published: State, how: str, tmp_path: Path) -> None:
    torch.save(wrapped(published, how), tmp_path / "w.pth")
    backbone = made(str(tmp_path / "w.pth"))
    loaded = {k: v for k, v in backbone.encoder.state_dict().items() if "num_batches" not in k}
    assert loaded and all(torch.equal(value, published[key]) for key, value in loaded.items())


@pytest.mark.parametrize("where", ["safetensors", "memory"])
def test_source_and_hash_are_told(published: State, where: str, tmp_path: Path) -> None:
    place = str(tmp_path / "w.safetensors")
    if where == "safetensors":
        save_file(published, place)
    else:
        place = "memory://timm/w"
        with fsspec.open(place, "wb") as file:
            file.write(save(published))
    facts = made(place).facts()
    assert facts["weights"] == place
    assert facts["weights_sha256"] == hashlib.sha256(save(published)).hexdigest()
    assert facts["weights_unused"] == "fc.bias, fc.weight"
    assert "licence" not in facts  # of a file of one's own it is not known
    assert "apache-2.0" in made("none").facts()["licence"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bn1.bias": None}, r"are these weights of test_resnet\? missing: bn1\.bias$"),
        ({"layer9.x": torch.zeros(1)}, r"unknown here: layer9\.x$"),
        ({"bn1.bias": torch.zeros(2)}, r"of another shape: bn1\.bias \(2,\), not \(32,\)$"),
        ({"conv1.0.weight": torch.zeros(16, 7, 3, 3)}, r"conv1\.0\.weight \(16, 7, 3, 3\), not"),
    ],
)
def test_what_does_not_fit_is_listed(
    published: State, change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    state = {k: v for k, v in (published | change).items() if v is not None}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(MtlError, match=told):
        made(str(tmp_path / "w.pth"))


def test_what_options_leave_out_is_ignored(tmp_path: Path) -> None:
    """An HRNet without the layers of its classifier; what else does not fit is an error still."""
    settings = {"model": "hrnet_w18_small", "options": {"head": "", "stem_width": 8}}
    narrow = timm().create_model("hrnet_w18_small", stem_width=8).state_dict()
    torch.save(narrow, tmp_path / "w.pth")
    backbone = made(str(tmp_path / "w.pth"), **settings)
    loaded = backbone.encoder.state_dict()
    assert loaded and all(torch.equal(value, narrow[key]) for key, value in loaded.items())
    unused = {key.split(".")[0] for key in backbone.facts()["weights_unused"].split(", ")}
    assert unused == {"incre_modules", "downsamp_modules", "final_layer", "classifier"}
    torch.save({**narrow, "stage5.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(MtlError, match=r"unknown here: stage5\.weight$"):
        made(str(tmp_path / "w.pth"), **settings)


def test_sorted_files_are_not_taken_in_order(published: State, tmp_path: Path) -> None:
    """Safetensors sort tensors by name: the order says nothing, even where all shapes fit."""
    save_file(wrapped(published, "foreign"), tmp_path / "w.safetensors")
    with pytest.raises(MtlError, match="missing"):
        made(str(tmp_path / "w.safetensors"))


def test_weights_of_another_model_are_refused(published: State, tmp_path: Path) -> None:
    torch.save(published, tmp_path / "w.pth")
    with pytest.raises(MtlError, match=r"w\.pth: are these weights of test_efficientnet\? missing"):
        made(str(tmp_path / "w.pth"), model="test_efficientnet")


def test_the_first_layer_is_adapted_and_that_is_told(
    published: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(published, tmp_path / "w.pth")
    backbone = made(str(tmp_path / "w.pth"), in_chans=1)
    own, key = backbone.encoder.state_dict(), "conv1.0.weight"
    assert torch.equal(own[key], published[key].sum(1, keepdim=True))
    assert "read 3 channels and is adapted to 1" in caplog.text
    four = made(str(tmp_path / "w.pth"), in_chans=4).encoder.state_dict()[key]
    torch.testing.assert_close(four[:, 3], published[key][:, 0] * 3 / 4)


def test_other_image_sizes_interpolate_positions(tmp_path: Path) -> None:
    """A transformer's file has the positions of the images that it was trained on."""
    state = timm().create_model("test_vit", img_size=96).state_dict()
    torch.save(state, tmp_path / "w.pth")
    encoder = made(str(tmp_path / "w.pth"), model="test_vit", pyramid="none").encoder
    assert encoder.pos_embed.shape != state["pos_embed"].shape
    assert torch.equal(encoder.cls_token, state["cls_token"])


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hugging Face hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_pretrained_weights_come_from_the_hub(published: State, offline: Path) -> None:
    folder = offline / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(published, folder / "snapshots" / ("0" * 40) / "model.safetensors")
    backbone = made("pretrained")
    assert torch.equal(backbone.encoder.state_dict()["bn1.bias"], published["bn1.bias"])
    facts = backbone.facts()
    assert facts["weights"] == "hf-hub:timm/test_resnet.r160_in1k/model.safetensors"
    assert facts["weights_sha256"] == hashlib.sha256(save(published)).hexdigest()
    assert "apache-2.0" in facts["licence"]


def test_without_a_network_a_file_is_named_as_the_remedy(offline: Path) -> None:
    with pytest.raises(
        MtlError, match=r"cannot be downloaded .* set model\.backbone\.weights to a local path"
    ):
        made("pretrained")


def test_a_model_without_weights(offline: Path) -> None:
    with pytest.raises(UsageError, match="no pretrained weights for darknet17"):
        made("pretrained", model="darknet17")
