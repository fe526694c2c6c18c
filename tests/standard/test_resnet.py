"""ResNet: published sizes and names, dilation instead of stride, weights from files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save, save_file

from mtlcore.errors import MtlError
from mtlcore.features import FeatureInfo
from mtlcore.models import MultiTaskModel, count_parameters
from mtlcore.plugins import settings_of
from mtlcore.standard.heads import ConvHead
from mtlcore.standard.resnet import MEAN, ResNet
from mtlcore.testing import TINY_TASKS, BackboneContract

SMALL = 1 / 16
SIZES = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}
# Entries of torchvision's state dicts without those of the classifier.
ENTRIES = {18: 120, 34: 216, 50: 318, 101: 624}


class TestBasic(BackboneContract):
    def make(self, tasks):
        return ResNet(tasks, depth=18, output_stride=8, width=SMALL)


class TestBottleneck(BackboneContract):
    def make(self, tasks):
        return ResNet(tasks, depth=50, width=SMALL)


@pytest.mark.parametrize("depth", SIZES)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_published_sizes(depth, stride):
    with torch.device("meta"):
        network = ResNet(TINY_TASKS, depth=depth, output_stride=stride)
    assert count_parameters(network.parameters()) == SIZES[depth]
    assert network.out_channels == ((512,) if depth < 50 else (2048,))
    assert network.strides == (stride,)
    assert network.input_multiple == stride


@pytest.mark.parametrize("depth", ENTRIES)
def test_names_are_those_of_torchvision(depth):
    with torch.device("meta"):
        shapes = {
            k: tuple(v.shape) for k, v in ResNet(TINY_TASKS, depth=depth).state_dict().items()
        }
    assert len(shapes) == ENTRIES[depth]
    deep = depth >= 50
    expected = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 1, 1) if deep else (64, 64, 3, 3),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1) if deep else None,
        "layer1.0.bn3.bias": (256,) if deep else None,
        "layer2.0.downsample.0.weight": (512, 256, 1, 1) if deep else (128, 64, 1, 1),
        "layer2.0.downsample.1.running_mean": (512,) if deep else (128,),
        "layer3.1.bn2.num_batches_tracked": (),
        "layer4.1.conv2.weight": (512, 512, 3, 3),
    }
    assert {key: shapes.get(key) for key in expected} == expected


def scrambled(network):
    """Every parameter and statistic away from where initialisation puts it."""
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.mul_(1 + 0.1 * torch.rand_like(value)).add_(0.02 * torch.rand_like(value))
    return network


@pytest.mark.parametrize("depth", SIZES)
@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_refines_the_map(depth, stride):
    """At the places that the plain network has, the dilated one has the same values."""
    torch.manual_seed(0)
    plain = scrambled(ResNet(TINY_TASKS, depth=depth, width=SMALL)).double().eval()
    dilated = ResNet(TINY_TASKS, depth=depth, width=SMALL, output_stride=stride).double().eval()
    dilated.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        coarse, fine = plain(images, []).shared[0], dilated(images, []).shared[0]
    step = 32 // stride
    assert fine.shape[2:] == (64 // stride, 96 // stride)
    torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, rtol=1e-9, atol=0)
    assert float(coarse.std()) > 0


def test_any_size_through_the_model():
    backbone = ResNet(TINY_TASKS, depth=18, output_stride=16, width=SMALL)
    info = FeatureInfo(backbone.out_channels, backbone.strides)
    heads = {task.name: ConvHead(task, info) for task in TINY_TASKS}
    predictions = MultiTaskModel(TINY_TASKS, backbone, heads)(torch.rand(2, 3, 33, 45), ["depth"])
    assert predictions["depth"].shape == (2, 1, 33, 45)


def test_images_are_normalised():
    """ImageNet's mean colour is zero to the network, in which nothing then adds anything."""
    network = ResNet(TINY_TASKS, depth=18, width=SMALL).eval()
    grey = torch.tensor(MEAN).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert not network(grey, []).shared[0].any()
    assert network(torch.ones(1, 3, 32, 32), []).shared[0].any()


def small(weights=None, depth=18):
    return ResNet(TINY_TASKS, depth=depth, width=SMALL, weights=weights)


def published(seed=3):
    """A state dict as torchvision has it, with a classifier."""
    torch.manual_seed(seed)
    state = dict(scrambled(small()).state_dict())
    return {**state, "fc.weight": torch.rand(10, 32), "fc.bias": torch.rand(10)}


def write(state, kind, folder: Path) -> str:
    if kind == "safetensors":
        save_file(state, folder / "weights.safetensors")
        return str(folder / "weights.safetensors")
    if kind == "memory":
        with fsspec.open("memory://weights/resnet", "wb") as file:
            file.write(save(state))
        return "memory://weights/resnet"
    torch.save(state, folder / "weights.pth")
    return str(folder / "weights.pth")


@pytest.mark.parametrize("kind", ["safetensors", "torch", "memory"])
def test_weights_come_from_a_file(kind, tmp_path):
    state = published()
    loaded = small(write(state, kind, tmp_path)).state_dict()
    assert loaded.keys() == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


def test_weights_are_told_with_their_hash(tmp_path):
    path = write(published(), "torch", tmp_path)
    facts = small(path).facts()
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert (facts["weights"], facts["weights_sha256"]) == (path, digest)
    assert "0.485" in facts["normalisation"] and "weights" not in small().facts()


def test_old_files_do_not_count_batches(tmp_path):
    state = {k: v for k, v in published().items() if not k.endswith("num_batches_tracked")}
    loaded = small(write(state, "torch", tmp_path)).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state if key in loaded)


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    good = published()
    bad = {
        r"'bn1\.bias' is missing": {k: v for k, v in good.items() if k != "bn1.bias"},
        r"'bn1\.weight' and 1 more are missing": {
            k: v for k, v in good.items() if k not in ("bn1.bias", "bn1.weight")
        },
        r"'layer5\.x' is unknown": {**good, "layer5.x": torch.zeros(1)},
        r"'conv1\.weight' is of another shape: \(1, 3, 7, 7\) where \(4, 3, 7, 7\)": {
            **good,
            "conv1.weight": torch.zeros(1, 3, 7, 7),
        },
        r"'epoch' is a int, not a tensor": {**good, "epoch": 3},
        r"holds a list, not a state dict": [torch.zeros(1)],
    }
    for number, (message, state) in enumerate(bad.items()):
        path = tmp_path / f"{number}.pth"
        torch.save(state, path)
        with pytest.raises(MtlError, match=rf"{number}\.pth: .*{message}"):
            small(str(path))


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(MtlError, match=r"nothing\.pth: no such file"):
        small(str(tmp_path / "nothing.pth"))
    for number, contents in enumerate((b"", b"<html>not here</html>", b"\x09" + 7 * b"\0" + b"{x")):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(contents)
        with pytest.raises(MtlError, match=rf"{number}\.pth: neither safetensors nor a state"):
            small(str(path))


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"conv1.weight": Path("x")}, tmp_path / "w.pth")
    with pytest.raises(MtlError, match="neither safetensors nor a state dict of tensors alone"):
        small(str(tmp_path / "w.pth"))


def test_weights_of_another_depth(tmp_path):
    path = write(published(), "torch", tmp_path)
    with pytest.raises(MtlError, match="missing; is it for another depth"):
        small(path, depth=34)


def test_settings_are_explained():
    assert [s.name for s in settings_of(ResNet) if s.meaning] == [
        "depth", "output_stride", "weights", "width", "pyramid",
    ]  # fmt: skip
