"""Encoders of every sort keep the contract; maps, normalisation and settings are as documented."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import MultiTaskModel, count_parameters
from mtlcore.standard.heads import ConvHead
from mtlcore.testing import TINY_TASKS, BackboneContract
from mtlcore_timm.backbone import TimmBackbone
from mtlcore_timm.library import timm


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def made(**settings: Any) -> TimmBackbone:
    return TimmBackbone(TINY_TASKS, **settings)


class TestStages(BackboneContract):
    def make(self, tasks):
        return TimmBackbone(tasks, model="test_resnet")


class TestSimplePyramid(BackboneContract):
    input_channels = 4

    def make(self, tasks):
        return TimmBackbone(
            tasks, model="test_vit", channels=8, in_chans=4, drop_path=0.1,
            gradient_checkpointing=True,
        )  # fmt: skip


class TestDPT(BackboneContract):
    def make(self, tasks):
        return TimmBackbone(tasks, model="test_vit", pyramid="dpt", channels=8)


class TestFrozenNorm(BackboneContract):
    input_channels = 1

    def make(self, tasks):
        return TimmBackbone(
            tasks, model="test_efficientnet", out_indices=(0, 2), freeze_norm=True, in_chans=1
        )


#: Published sizes, without classifiers and what follows the last map.
SIZES = {
    "resnet18": (11_176_512, (512, 256, 128, 64), (32, 16, 8, 4)),
    "tf_efficientnet_lite0": (2_958_848, (320, 112, 40, 24), (32, 16, 8, 4)),
    "convnextv2_atto": (3_386_760, (320, 160, 80, 40), (32, 16, 8, 4)),
    "pvt_v2_b0": (3_409_760, (256, 160, 64, 32), (32, 16, 8, 4)),
    "swin_tiny_patch4_window7_224": (27_517_818, (768, 384, 192, 96), (32, 16, 8, 4)),
}


@pytest.mark.parametrize("model", SIZES)
def test_published_sizes(model: str) -> None:
    parameters, channels, strides = SIZES[model]
    with torch.device("meta"):
        backbone = made(model=model)
    assert count_parameters(backbone.parameters()) == parameters
    assert (backbone.out_channels, backbone.strides) == (channels, strides)


@pytest.mark.parametrize(
    ("options", "parameters", "channels"),
    [({"head": ""}, 3_860_720, (144, 72, 36, 18)), (None, 5_246_640, (1024, 512, 256, 128))],
)
def test_options_of_a_model(options, parameters: int, channels: tuple[int, ...]) -> None:
    """HRNet-W18 with and without the layers through which its classifier reads its branches."""
    with torch.device("meta"):
        backbone = made(model="hrnet_w18_small_v2", options=options)
    assert count_parameters(backbone.parameters()) == parameters
    assert (backbone.out_channels, backbone.strides) == (channels, (32, 16, 8, 4))


def test_maps_are_those_that_timm_computes() -> None:
    backbone = made(model="test_convnext", out_indices=(-1, 1)).eval()
    full = timm().create_model("test_convnext", num_classes=0).eval()
    full.load_state_dict(backbone.encoder.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 96)
    mean, std = (torch.tensor(full.pretrained_cfg[k]).reshape(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        expected = full.forward_intermediates((images - mean) / std, intermediates_only=True)
        found = backbone(images, []).shared
    assert [x.shape for x in found] == [expected[3].shape, expected[1].shape]
    assert torch.equal(found[0], expected[3]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_are_normalised_as_the_weights_were(channels: int) -> None:
    backbone = made(model="resnet10t", in_chans=channels, out_indices=(0,))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = {1: [0.449], 3: list(mean), 5: [*mean, *mean[:2]]}[channels]
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor(expected))
    seen = []
    backbone.encoder.register_forward_pre_hook(lambda module, given: seen.append(given))
    first = next(m for m in backbone.encoder.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    backbone(torch.ones(2, channels, 32, 32), [])
    colour = seen[-1][0, :, 0, 0]
    assert colour[0].item() == pytest.approx((1 - expected[0]) / backbone.std[0].item())
    assert "mean" in backbone.state_dict() and f"mean {mean}, std {std}" in str(backbone.facts())


def test_any_size_through_the_model() -> None:
    for settings in ({"model": "test_resnet"}, {"model": "test_vit", "channels": 8}):
        backbone = made(**settings)
        info = FeatureInfo(backbone.out_channels, backbone.strides)
        heads = {task.name: ConvHead(task, info) for task in TINY_TASKS}
        model = MultiTaskModel(TINY_TASKS, backbone, heads)
        for size in ((33, 45), (7, 90)):
            assert model(torch.rand(2, 3, *size), ["depth"])["depth"].shape == (2, 1, *size)


def test_patches_without_whole_strides() -> None:
    with torch.device("meta"):
        backbone = made(model="vit_small_patch14_dinov2")
    assert backbone.strides == (28, 14, 7) and backbone.input_multiple == 28


def test_a_plain_transformer_hands_out_its_blocks() -> None:
    last = made(model="test_vit", pyramid="none")
    assert (last.out_channels, last.strides, last.indices) == ((64,), (16,), [5])
    more = made(model="test_vit", pyramid="none", out_indices=(-1, 0, 2))
    assert (more.strides, more.indices) == ((16, 16, 16), [0, 2, 5])
    maps = more.eval()(torch.rand(1, 3, 32, 32), []).shared
    assert len({x.sum().item() for x in maps}) == 3
    four = made(model="test_vit", pyramid="dpt", channels=4)
    assert four.indices == [0, 2, 3, 5]


def test_dpt_reads_its_own_block_for_every_map() -> None:
    backbone = made(model="test_vit", pyramid="dpt", channels=4)
    maps = backbone(torch.rand(1, 3, 32, 32), []).shared
    last_block = next(backbone.encoder.blocks[5].parameters())
    reached = [
        torch.autograd.grad(x.sum(), last_block, retain_graph=True, allow_unused=True)[0]
        is not None
        for x in maps
    ]
    assert reached == [True, False, False, False]


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_efficientnet"])
def test_gradient_checkpointing_computes_maps_again(model: str) -> None:
    found = {}
    for again in (False, True):
        torch.manual_seed(0)
        backbone = made(model=model, gradient_checkpointing=again, channels=8)
        calls = Counter()
        for module in backbone.encoder.modules():
            module.register_forward_hook(lambda m, *_, seen=calls: seen.update([m]))
        features = backbone(torch.ones(2, 3, 64, 64), [])
        gradients = torch.autograd.grad(
            [x.mean() for x in features.shared], list(backbone.encoder.parameters())
        )
        found[again] = gradients
        most = calls.most_common(1)[0][1]
        assert most == 1 + again
    for one, other in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_layers_from_the_input_on() -> None:
    backbone = made(model="test_resnet")
    groups = backbone.layer_groups()
    ids = [id(p) for group in groups for p in group]
    assert len(groups) == 5 and sorted(ids) == sorted(map(id, backbone.encoder.parameters()))
    assert groups[0][0] is next(backbone.encoder.parameters())


def test_heads_of_one_map_look_at_what_most_of_the_network_made() -> None:
    assert made(model="test_resnet").main_map == 0
    assert made(model="test_vit", channels=4).main_map == -1  # made of the last block, as all are
    assert made(model="test_vit", channels=4, pyramid="dpt").main_map == 0


def test_frozen_norm_neither_learns_nor_counts() -> None:
    backbone = made(model="test_resnet", freeze_norm=True).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms]
    backbone(torch.rand(2, 3, 32, 32), [])
    assert norms and all(map(torch.equal, before, (m.running_mean for m in norms)))
    assert not any(p.requires_grad for m in norms for p in m.parameters())
    assert any(p.requires_grad for p in backbone.parameters())
    free = made(model="test_resnet").train()
    free(torch.rand(2, 3, 32, 32), [])
    moved = next(m for m in free.modules() if isinstance(m, nn.BatchNorm2d)).running_mean
    assert moved.abs().sum() > 0


def test_drop_path_grows_to_the_last_block() -> None:
    encoder = made(model="test_vit", drop_path=0.3, pyramid="none").encoder
    assert encoder.blocks[5].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "resnt18"}, r"no model 'resnt18'; did you mean 'resnet18'"),
        ({"model": "resnet18.a1_in1"}, r"no weights 'a1_in1'; did you mean 'a1_in1k'"),
        ({"model": "test_resnet", "out_indices": (0, 5)}, r"stages 0 to 4, of strides 2, 4, 8"),
        ({"model": "test_resnet", "out_indices": ()}, r"out_indices: \[\]"),
        ({"model": "test_vit", "out_indices": (0, 1)}, r"made of 1 of its 6 blocks"),
        ({"model": "test_vit", "out_indices": (0,), "pyramid": "dpt"}, r"made of 4 of its 6"),
        ({"model": "mixer_s32_224"}, r"cannot read images of any size, such as .*224"),
        ({"model": "crossvit_tiny_240"}, r"cannot read|the maps of crossvit_tiny_240"),
        ({"model": "dla34", "gradient_checkpointing": True}, r"none for the maps of dla34"),
        ({"model": "vgg11", "drop_path": 0.1}, r"drop_path: vgg11 has no stochastic depth"),
        ({"model": "test_resnet", "options": {"nope": 1}}, r"options: test_resnet .*'nope'"),
        ({"model": "test_resnet", "options": {"layers": "x"}}, r"options: test_resnet does not"),
        ({"model": "test_resnet", "options": {"num_classes": 2}}, r"num_classes is set by other"),
        ({"model": "test_resnet", "in_chans": 0}, r"in_chans 0 must be positive"),
        ({"model": "test_resnet", "drop_path": 1.0}, r"drop_path 1.0 from 0 to below 1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], told: str) -> None:
    with torch.device("meta"), pytest.raises(UsageError, match=told):
        made(**settings)


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(UsageError, match=r"in_chans: the images have 4 channels, .* set it to 4"):
        made(model="test_resnet")(torch.rand(1, 4, 32, 32), [])


def test_a_resnet_names_its_residual_blocks() -> None:
    """Where there is squeeze and excitation, branches end with it; the contract checks the rest."""
    plain = made(model="test_resnet").residual_blocks()
    squeezing = made(model="test_resnet", options={"block_args": {"attn_layer": "se"}})
    for stage, (block, other) in enumerate(
        zip(plain, squeezing.residual_blocks(), strict=True), start=1
    ):
        assert block.name == other.name == f"encoder.layer{stage}.0"
        assert block.last.rpartition(".")[2] in ("bn2", "bn3")
        assert other.last == f"{block.name}.se"
    assert not made(model="test_vit").residual_blocks()
