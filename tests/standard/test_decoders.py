"""Decoders over pyramids: published sizes, the contracts, what they read, what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import Head, MultiTaskModel, Neck, SharedNeck, count_parameters
from mtlcore.standard import decoder_heads
from mtlcore.standard.decoders import FPN, DPTFusion, HRNetFusion, SegFormerMLP, UPerNet
from mtlcore.standard.heads import ConvHead, DeepLabHead, LinearHead
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet, UNetNeck
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract, HeadContract, NeckContract

CLASSES = Task(name="segmentation", kind="segmentation", channels=40)
DEPTH = Task(name="depth", kind="depth", channels=1)
WHOLE = Task(name="scene", kind="classification", channels=5)
PYRAMIDS = (
    FeatureInfo((8, 6, 5), (8, 4, 2), main_map=0),
    FeatureInfo((6, 5, 4), (4, 4, 1), main_map=0),  # the deepest is dilated
    FeatureInfo((7, 3, 6), (8, 0, 4)),  # with a vector between
)
STRIDES = (32, 16, 8, 4)
SWIN = FeatureInfo((768, 384, 192, 96), STRIDES)
B0 = FeatureInfo((256, 160, 64, 32), STRIDES)
B1 = FeatureInfo((512, 320, 128, 64), STRIDES)
R50 = FeatureInfo((2048, 1024, 512, 256), STRIDES)


def size(module: nn.Module) -> int:
    return count_parameters(module.parameters())


def test_counts_of_segformer() -> None:
    """transformers' SegformerDecodeHead."""
    with torch.device("meta"):
        assert size(decoder_heads.segformer_mlp(CLASSES, B0)) == 405_032
        assert size(decoder_heads.segformer_mlp(DEPTH, B0)) == 395_009
        assert size(decoder_heads.segformer_mlp(CLASSES, B1, channels=768)) == 3_181_096
        assert size(decoder_heads.segformer_mlp(DEPTH, B1, channels=768)) == 3_151_105


def test_counts_of_upernet() -> None:
    """transformers' UperNetHead, in whole and in its parts."""
    with torch.device("meta"):
        neck = UPerNet(SWIN)
        assert size(decoder_heads.upernet(CLASSES, SWIN)) == 31_440_936
    parts = (neck.pooled, neck.top, neck.lateral, neck.smooth, neck.join)
    assert [*map(size, parts)] == [1_576_960, 12_977_152, 347_136, 7_080_960, 9_438_208]


def test_counts_of_dpt() -> None:
    """transformers' DPT but for its reassembling, and for a unit that nothing reaches there."""
    neck, reassembling, idle = 24_455_616, 11_433_408, 1_180_160
    with torch.device("meta"):
        assert size(DPTFusion(SWIN)) == neck - reassembling - idle
        depth = decoder_heads.dpt(DEPTH, SWIN, output="depth")
        assert size(depth.output) == 331_969
        assert size(decoder_heads.dpt(CLASSES, SWIN).output) == 600_616


def test_counts_of_hrnet() -> None:
    """The head of Vandenhende et al. on the maps of HRNet-W18."""
    maps = FeatureInfo((144, 72, 36, 18), STRIDES)
    with torch.device("meta"):
        assert size(HRNetFusion(maps)) == 73_710
        assert size(decoder_heads.hrnet(CLASSES, maps)) == 73_710 + 271 * 40


def test_counts_of_fpn() -> None:
    """torchvision's pyramid of a ResNet-50; the branch as its paper describes it."""
    with torch.device("meta"):
        neck = FPN(R50)
        head = decoder_heads.fpn(CLASSES, R50)
    assert size(neck.lateral) + size(neck.output) == 3_344_384
    assert size(neck.branches) == 7 * 256 + 9 * 128 * (4 * 256 + 3 * 128)
    assert size(head) == size(neck) + 129 * 40


def test_counts_of_unet() -> None:
    """Over U-Net's own pyramid it is U-Net's decoder."""
    neck = UNetNeck(FeatureInfo((1024, 512, 256, 128, 64), (16, 8, 4, 2, 1)))
    assert size(neck) == 12_190_400


class TestFPN(NeckContract):
    features = PYRAMIDS

    def make(self, features: FeatureInfo) -> Neck:
        return FPN(features, channels=6, branch=8)


class TestSegFormerMLP(NeckContract):
    features = PYRAMIDS

    def make(self, features: FeatureInfo) -> Neck:
        return SegFormerMLP(features, channels=6)


class TestHRNetFusion(NeckContract):
    features = PYRAMIDS

    def make(self, features: FeatureInfo) -> Neck:
        return HRNetFusion(features)


class TestUPerNet(NeckContract):
    features = PYRAMIDS

    def make(self, features: FeatureInfo) -> Neck:
        return UPerNet(features, channels=6, pools=(1, 2))


class TestDPT(NeckContract):
    features = PYRAMIDS

    def make(self, features: FeatureInfo) -> Neck:
        return DPTFusion(features, channels=6)


class TestUNetNeck(NeckContract):
    features = PYRAMIDS

    def make(self, features: FeatureInfo) -> Neck:
        return UNetNeck(features)


class TestFPNHead(HeadContract):
    features = PYRAMIDS

    def make(self, task: Task, features: FeatureInfo) -> Head:
        return decoder_heads.fpn(task, features, channels=6, branch=8)


class TestUPerNetHead(HeadContract):
    features = PYRAMIDS

    def make(self, task: Task, features: FeatureInfo) -> Head:
        return decoder_heads.upernet(task, features, channels=6, pools=(1, 2))


class TestSegFormerHead(HeadContract):
    features = PYRAMIDS

    def make(self, task: Task, features: FeatureInfo) -> Head:
        return decoder_heads.segformer_mlp(task, features, channels=6)


class TestHRNetHead(HeadContract):
    features = PYRAMIDS

    def make(self, task: Task, features: FeatureInfo) -> Head:
        return decoder_heads.hrnet(task, features)


class TestUNetHead(HeadContract):
    features = PYRAMIDS

    def make(self, task: Task, features: FeatureInfo) -> Head:
        return decoder_heads.unet(task, features)


class TestDPTHead(HeadContract):
    features = PYRAMIDS

    def make(self, task: Task, features: FeatureInfo) -> Head:
        return decoder_heads.dpt(task, features, channels=6)


class TestDPTDepthHead(HeadContract):
    features, task = PYRAMIDS, DEPTH

    def make(self, task: Task, features: FeatureInfo) -> Head:
        return decoder_heads.dpt(task, features, channels=6, output="depth")


class TestResNetPyramid(BackboneContract):
    def make(self, tasks):
        return ResNet(tasks, depth=18, output_stride=16, width=1 / 16, pyramid=True)


class TestUNetEncoder(BackboneContract):
    def make(self, tasks):
        return UNet(tasks, width=1 / 32, decoder="none")


def test_the_pyramid_of_a_resnet_is_deepest_first() -> None:
    with torch.device("meta"):
        plain = ResNet(TINY_TASKS, depth=50, output_stride=8, pyramid=True)
    assert (plain.out_channels, plain.strides) == ((2048, 1024, 512, 256), (8, 8, 8, 4))
    assert plain.main_map == 0 and size(plain) == 23_508_032


@pytest.mark.parametrize("make", [ConvHead, DeepLabHead])
def test_a_head_of_one_map_reads_the_deepest_of_a_pyramid(make) -> None:
    """The same as if it were given alone."""
    torch.manual_seed(0)
    maps = [torch.rand(2, c, 32 // s, 32 // s) for c, s in zip((8, 6), (8, 4), strict=True)]
    head = make(DEPTH, FeatureInfo((8, 6), (8, 4), main_map=0)).eval()
    alone = make(DEPTH, FeatureInfo((8,), (8,))).eval()
    alone.load_state_dict(head.state_dict())
    assert torch.equal(head(maps), alone(maps[:1]))


def test_hrnet_joins_all_maps_finest_first() -> None:
    fusion = HRNetFusion(FeatureInfo((8, 3, 6), (4, 0, 2))).eval()
    deep, token, fine = torch.rand(1, 8, 2, 3), torch.rand(1, 3), torch.rand(1, 6, 4, 6)
    enlarged = nn.functional.interpolate(deep, (4, 6), mode="bilinear")
    (found,) = fusion([deep, token, fine])
    assert fusion.out_channels == (14,) and fusion.strides == (2,)
    torch.testing.assert_close(found, fusion.join(torch.cat([fine, enlarged], 1)))


def test_a_linear_head_reads_a_token_beside_the_maps() -> None:
    maps = [torch.rand(2, 8, 4, 4), torch.rand(2, 3), torch.rand(2, 6, 8, 8)]
    head = LinearHead(WHOLE, FeatureInfo((8, 3, 6), (8, 0, 4), main_map=0))
    assert torch.equal(head(maps), head.output(maps[1]))
    without = LinearHead(WHOLE, FeatureInfo((8, 6), (8, 4), main_map=0))
    assert torch.equal(without([maps[0], maps[2]]), without.output(maps[0].mean((2, 3))))


def test_any_size_through_the_model() -> None:
    backbone = ResNet(TINY_TASKS, depth=18, width=1 / 16, pyramid=True)
    neck = SharedNeck(UPerNet(FeatureInfo.of(backbone), channels=6))
    heads = {task.name: ConvHead(task, neck.info) for task in TINY_TASKS}
    model = MultiTaskModel(TINY_TASKS, backbone, heads, neck)
    predictions = model(torch.rand(2, 3, 33, 45), ["depth", "segmentation"])
    assert predictions["depth"].shape == (2, 1, 33, 45)
    assert predictions["segmentation"].shape == (2, 4, 33, 45)


def test_what_cannot_work_is_refused() -> None:
    vectors = FeatureInfo((8,), (0,))
    for make in (FPN, UPerNet, SegFormerMLP, HRNetFusion, DPTFusion, UNetNeck):
        with pytest.raises(UsageError, match="reads maps, and the backbone gives vectors"):
            make(vectors)
    with pytest.raises(UsageError, match=r"one map.*pyramid=true"):
        UNetNeck(FeatureInfo((8,), (32,)))
    with pytest.raises(UsageError, match="multiples of the next finer"):
        UNetNeck(FeatureInfo((8, 8), (14, 4)))
    with pytest.raises(UsageError, match="linear head"):
        decoder_heads.fpn(WHOLE, B0)
    with pytest.raises(UsageError, match="dropout 1"):
        decoder_heads.dpt(DEPTH, B0, dropout=1)
    with pytest.raises(UsageError, match="channels must be positive, not 0"):
        SegFormerMLP(B0, channels=0)


def test_depth_can_be_kept_from_being_negative() -> None:
    head = decoder_heads.dpt(DEPTH, PYRAMIDS[0], channels=4, output="depth", non_negative=True)
    maps = [torch.randn(2, c, 16 // s, 16 // s) for c, s in zip((8, 6, 5), (8, 4, 2), strict=True)]
    with torch.no_grad():
        head.output[-2].bias.fill_(-100.0)
    assert not head(maps).any()
