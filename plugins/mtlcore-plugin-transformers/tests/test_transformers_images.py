"""Image encoders keep the contract; maps, normalisation, weights and refusals are as documented."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mtlcore.errors import ConfigError, MtlError, UsageError
from mtlcore.models import count_parameters
from mtlcore.testing import TINY_TASKS, BackboneContract
from mtlcore_transformers.images import TransformersBackbone
from mtlcore_transformers.library import mapping, transformers

SMALL: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    "convnextv2": {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]},
    "dinov2": {
        "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 14,
        "image_size": 28,
    },
}  # fmt: skip


def made(model: str = "resnet", **settings: Any) -> TransformersBackbone:
    config = SMALL.get(model)
    return TransformersBackbone(TINY_TASKS, **{"model": model, "config": config, **settings})


class TestStages(BackboneContract):
    input_channels = 4

    def make(self, tasks):
        return TransformersBackbone(
            tasks, model="resnet", config=SMALL["resnet"], in_chans=4, freeze_norm=True
        )


@pytest.mark.parametrize(("kind", "last"), [("basic", 1), ("bottleneck", 2)])
def test_a_resnet_names_its_residual_blocks(kind: str, last: int) -> None:
    """Where one strides its shortcut is a convolution; what they are, the contract checks."""
    config = {**SMALL["resnet"], "depths": [1, 2, 1, 1], "layer_type": kind}
    blocks = TransformersBackbone([], model="resnet", config=config).residual_blocks()
    assert [block.channels for block in blocks] == [8, 8, 8, 16, 16]
    assert [block.shortcut is None for block in blocks] == [True, False, True, False, False]
    assert all(block.last == f"{block.name}.layer.{last}.normalization" for block in blocks)
    assert not TransformersBackbone([], model="swin", config=SMALL["swin"]).residual_blocks()


class TestWindows(BackboneContract):
    def make(self, tasks):
        return TransformersBackbone(
            tasks, model="swin", config=SMALL["swin"], gradient_checkpointing=True
        )


class TestPyramid(BackboneContract):
    def make(self, tasks):
        return TransformersBackbone(tasks, model="dinov2", config=SMALL["dinov2"], channels=8)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of a Swin with a classifier, as save_pretrained writes it."""
    settings = {**SMALL["swin"], "num_channels": 3}
    configuration = transformers().AutoConfig.for_model("swin", **settings)
    kind = mapping("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING")[type(configuration)]
    model = kind(configuration)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    content = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.25], "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    (folder / "README.md").write_text("---\ntags:\n- vision\nlicense: apache-2.0\n---\n# Swin\n")
    return folder


def test_published_sizes() -> None:
    """Of ResNet-50 and Swin-T, without classifiers."""
    with torch.device("meta"):
        resnet, swin = made(config=None), made("swin", config=None)
        assert made("convnextv2", config=None).out_channels == (768, 384, 192, 96)
    assert count_parameters(resnet.parameters()) == 23_508_032
    assert (resnet.out_channels, resnet.strides) == ((2048, 1024, 512, 256), (32, 16, 8, 4))
    assert swin.strides == (32, 16, 8, 4) and swin.out_channels == (768, 384, 192, 96)
    learning = [p for p in swin.parameters() if p.requires_grad]
    # 27,519,354 of the whole, of which the last norm gives way to one per stage.
    assert count_parameters(learning) == 27_519_354 - 2 * 768 + 2 * (96 + 192 + 384 + 768)


def test_maps_are_those_that_transformers_computes(saved: Path) -> None:
    backbone = made(str(saved), weights="pretrained", out_indices=(-1,)).eval()
    images = torch.rand(2, 3, 32, 64)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.5, 0.25])
    normalised = (images - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    whole = transformers().AutoModel.from_pretrained(saved).eval()
    with torch.no_grad():
        (found,) = backbone(images, []).shared
        states = whole(normalised, output_hidden_states=True).reshaped_hidden_states
        norm = backbone.encoder.hidden_states_norms["stage2"]
        expected = norm(states[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected)
    facts = backbone.facts()
    assert facts["normalisation"] == "mean (0.1, 0.2, 0.3), std (0.5, 0.5, 0.25)"
    assert facts["licence"] == "apache-2.0 (the model's card)"
    assert facts["weights"] == str(saved / "model.safetensors")
    content = (saved / "model.safetensors").read_bytes()
    assert facts["weights_sha256"] == hashlib.sha256(content).hexdigest()
    assert {"classifier.bias", "classifier.weight"} <= {*facts["weights_unused"].split(", ")}


def test_a_file_of_its_own_and_shards(saved: Path, tmp_path: Path) -> None:
    state = load_file(saved / "model.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    wanted = made(str(saved), weights="pretrained").state_dict()
    other = made("swin", weights=str(tmp_path / "w.pth"))
    assert all(torch.equal(v, wanted[k]) for k, v in other.state_dict().items() if "encoder" in k)
    assert "licence" not in other.facts() and "the model names none" in str(other.facts())
    (saved / "model.safetensors").unlink()
    names = {key: f"part-{number % 2}.safetensors" for number, key in enumerate(state)}
    for part in set(names.values()):
        save_file({k: v for k, v in state.items() if names[k] == part}, saved / part)
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    sharded = made(str(saved), weights="pretrained")
    assert all(torch.equal(v, wanted[k]) for k, v in sharded.state_dict().items())
    assert sharded.facts()["weights_sha256"].count(", ") == 1
    (saved / "part-1.safetensors").unlink()
    with pytest.raises(MtlError, match=r"names part-1\.safetensors, which is not beside it"):
        made(str(saved), weights="pretrained")


def test_weights_of_another_model_are_listed(saved: Path) -> None:
    with pytest.raises(MtlError, match=r"are these weights of ResNetBackbone\? missing: embedder"):
        made(weights=str(saved))
    with pytest.raises(MtlError, match=r"SwinBackbone\? .*of another shape: .*\(8,\), not \(16,\)"):
        made("swin", weights=str(saved), config={**SMALL["swin"], "embed_dim": 16})


@pytest.mark.parametrize("channels", [1, 5])
def test_the_first_layer_is_adapted_and_that_is_told(
    saved: Path, channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = load_file(saved / "model.safetensors")
    backbone = made(str(saved), weights="pretrained", in_chans=channels)
    end = "patch_embeddings.projection.weight"
    (name,) = (k for k in before if k.endswith(end))
    own = next(v for k, v in backbone.state_dict().items() if k.endswith(end))
    expected = {1: before[name].sum(1, keepdim=True)}.get(
        channels, before[name][:, [0, 1, 2, 0, 1]] * 3 / 5
    )
    torch.testing.assert_close(own, expected)
    assert f"read 3 channels and is adapted to {channels}" in caplog.text
    assert backbone.mean.numel() == channels


def test_half_precision_is_read_as_single(saved: Path) -> None:
    file = saved / "model.safetensors"
    state = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
    save_file(state, file)
    told = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(told | {"dtype": "float16"}))
    backbone = made(str(saved), weights="pretrained")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_what_no_map_depends_on_does_not_learn() -> None:
    frozen = [n for n, p in made("dinov2").named_parameters() if not p.requires_grad]
    assert frozen == ["encoder.embeddings.mask_token"]
    early = made("resnet", out_indices=(0,))
    last = [p for n, p in early.named_parameters() if "stages.3" in n]
    assert last and not any(p.requires_grad for p in last)
    assert all(p.requires_grad for p in early.last_shared_parameters())


def test_gradient_checkpointing_computes_maps_again() -> None:
    found = {}
    for again in (False, True):
        torch.manual_seed(0)
        backbone = made("dinov2", gradient_checkpointing=again, channels=8)
        calls = []
        for module in backbone.encoder.modules():
            module.register_forward_hook(lambda m, *_, seen=calls: seen.append(m))
        features = backbone(torch.ones(2, 3, 56, 84), [])
        calls.clear()
        parameters = [p for p in backbone.encoder.parameters() if p.requires_grad]
        found[again] = torch.autograd.grad([x.mean() for x in features.shared], parameters)
        assert bool(calls) == again
    for one, other in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_layers_from_the_input_on() -> None:
    for model, number in (("resnet", 5), ("swin", 3), ("dinov2", 5)):
        backbone = made(model)
        groups = backbone.layer_groups()
        ids = [id(p) for group in groups for p in group]
        assert len(groups) == number
        assert sorted(ids) == sorted(map(id, backbone.encoder.parameters()))
        assert groups[0][0] is next(backbone.encoder.parameters())


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"model": "resnett"}, MtlError, r"name a local folder; .*; did you mean 'resnet'"),
        ({"model": "no-one/nothing"}, MtlError, r"of 'no-one/nothing'.*name a local folder"),
        ({"model": "./nowhere"}, UsageError, r"'\./nowhere' is no local folder"),
        ({"model": "bert"}, UsageError, r"no backbone of the type bert.* has those of beit"),
        ({"model": "timm_backbone"}, UsageError, r"take the backbone timm instead"),
        ({"config": {"depth": [1]}}, ConfigError, r"config\.depth: resnet has no .*'depths'"),
        ({"config": {"out_indices": [1]}}, ConfigError, r"set model\.backbone\.out_indices"),
        ({"config": {"hidden_sizes": "x"}}, UsageError, r"resnet (with this|does not take)"),
        ({"weights": "pretrained"}, UsageError, r"'resnet' is a model type, which has no weights"),
        ({"weights": "/no/file"}, MtlError, r"/no/file: no such file"),
        ({"out_indices": (4,)}, UsageError, r"resnet has the stages 0 to 3, of strides 4, 8"),
        ({"gradient_checkpointing": True}, UsageError, r"none for the maps of resnet"),
        ({"model": "hiera", "config": {}}, UsageError, r"hiera cannot read images of any size"),
        ({"in_chans": 0}, UsageError, r"in_chans 0 must be positive"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(settings: dict[str, Any], error: Any, told: str) -> None:
    place = "meta" if settings.get("model") == "hiera" else "cpu"  # a large one
    with torch.device(place), pytest.raises(error, match=told):
        made(**settings)
