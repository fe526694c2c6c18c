"""Decoders over any pyramid of maps: FPN, UPerNet, SegFormer's, DPT's, HRNet's.

Each turns the maps of a backbone, whatever their number, channels and strides, into one map. They
are necks (`model.neck`, one for all tasks or one for each) and, with an output layer, heads
(`mtlcore.standard.decoder_heads`). Vectors beside the maps are left alone. Parameters are drawn as
torch draws them. U-Net's decoder is in `mtlcore.standard.unet`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import Neck
from mtlcore.ranges import Channels, Dilations


def levels_of(features: FeatureInfo, decoder: str) -> tuple[tuple[int, ...], list[int], list[int]]:
    """Return places, channels and strides of a backbone's maps, the deepest first.

    Raises:
        UsageError: there is no map.
    """
    places = features.pyramid
    if not places:
        raise UsageError(
            f"model: the {decoder} decoder reads maps, and the backbone gives vectors alone; leave "
            "it out, or choose a backbone of images"
        )
    channels = [features.channels[place] for place in places]
    return places, channels, [features.strides[place] for place in places]


class FPN(Neck):
    """A feature pyramid whose levels are brought to the finest stride and added up.

    Lin et al., "Feature Pyramid Networks", CVPR 2017 (arXiv 1612.03144): a 1x1 convolution per map,
    added from the deepest on to the next finer one (nearest neighbours), then a 3x3 convolution
    each. On it the branch of Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019 (arXiv
    1901.02446): per level as many 3x3 convolutions with group norm and ReLU as it is halvings above
    the finest stride (at least one), each but the finest level's enlarged twice bilinearly; their
    sum is the map. On the four maps of a ResNet-50 the pyramid has 3,344,384 parameters and the
    branch 1,623,808.

    Args:
        features: all maps are read.
        channels: of the pyramid.
        branch: channels of the branch and of the map.

    Raises:
        UsageError: there is no map, or a number is not positive.
    """

    def __init__(
        self, features: FeatureInfo, *, channels: Channels = 256, branch: Channels = 128
    ) -> None:
        super().__init__()
        _check_positive("fpn", channels=channels, branch=branch)
        self._places, inputs, strides = levels_of(features, "fpn")
        self.out_channels, self.strides = (branch,), (strides[-1],)
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in inputs)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)
        self.branches = nn.ModuleList(
            nn.ModuleList(
                _group_unit(branch if number else channels, branch)
                for number in range(max(1, math.ceil(math.log2(stride / strides[-1]))))
            )
            for stride in strides
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute maps of any strides -> (B, branch, H / s, W / s), s the finest one."""
        height, width = features[self._places[-1]].shape[2:]
        above: Tensor | None = None
        total: Tensor | None = None
        for place, lateral, output, branch in zip(
            self._places, self.lateral, self.output, self.branches, strict=True
        ):
            here = lateral(features[place])
            if above is not None:
                here = here + F.interpolate(above, here.shape[2:], mode="nearest")
            above, maps = here, output(here)
            for unit in branch.children():
                maps = unit(maps)
                size = (min(2 * maps.shape[2], height), min(2 * maps.shape[3], width))
                if tuple(maps.shape[2:]) != size:
                    maps = _resized(maps, size)
            total = maps if total is None else total + maps
        assert total is not None
        return (total,)

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last unit of every level."""
        return (p for branch in self.branches for p in [*branch.children()][-1].parameters())


class SegFormerMLP(Neck):
    """SegFormer's decoder: a linear layer per map, all at the finest stride, joined by another one.

    Xie et al., "SegFormer", NeurIPS 2021 (arXiv 2105.15203), as in its published code: maps are
    enlarged bilinearly and joined deepest first by a 1x1 convolution without bias, batch norm and
    ReLU. On 32, 64, 160 and 256 channels (B0) it has 394,752 parameters.

    Args:
        features: all maps are read.
        channels: of every layer; 256 for B0, 768 for the larger ones.

    Raises:
        UsageError: there is no map, or the number is not positive.
    """

    def __init__(self, features: FeatureInfo, *, channels: Channels = 256) -> None:
        super().__init__()
        _check_positive("segformer-mlp", channels=channels)
        self._places, inputs, strides = levels_of(features, "segformer-mlp")
        self.out_channels, self.strides = (channels,), (strides[-1],)
        self.linear = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in inputs)
        self.join = _unit(len(inputs) * channels, channels)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute maps of any strides -> (B, channels, H / s, W / s), s the finest one."""
        size = features[self._places[-1]].shape[2:]
        maps = [
            _resized(layer(features[place]), size)
            for layer, place in zip(self.linear, self._places, strict=True)
        ]
        return (self.join(torch.cat(maps, dim=1)),)

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the joining layer."""
        return self.join.parameters()


class UPerNet(Neck):
    """UPerNet: pyramid pooling of the deepest map, a feature pyramid, all levels joined.

    Xiao et al., "Unified Perceptual Parsing", ECCV 2018 (arXiv 1807.10221), as in mmsegmentation
    and transformers, without their auxiliary head. On 96, 192, 384 and 768 channels (Swin-T) it has
    31,420,416 parameters. If the input was padded, the pools include the padding.

    Args:
        features: all maps are read.
        channels: of every layer.
        pools: sides of the grids to which the deepest map is pooled.

    Raises:
        UsageError: there is no map, or a number is not positive.
    """

    def __init__(
        self, features: FeatureInfo, *, channels: Channels = 512, pools: Dilations = (1, 2, 3, 6)
    ) -> None:
        super().__init__()
        _check_positive("upernet", channels=channels, pools=min(pools, default=0))
        self._places, inputs, strides = levels_of(features, "upernet")
        self.out_channels, self.strides = (channels,), (strides[-1],)
        deepest, *finer = inputs
        self._pools = pools
        self.pooled = nn.ModuleList(_unit(deepest, channels) for _ in pools)
        self.top = _unit(deepest + len(pools) * channels, channels, 3)
        self.lateral = nn.ModuleList(_unit(c, channels) for c in finer)
        self.smooth = nn.ModuleList(_unit(channels, channels, 3) for _ in finer)
        self.join = _unit(len(inputs) * channels, channels, 3)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute maps of any strides -> (B, channels, H / s, W / s), s the finest one.

        Raises:
            ValueError: a batch of one sample in training, whose pool of one place batch norm cannot
                normalise.
        """
        deepest, *finer = (features[place] for place in self._places)
        pooled = [
            _resized(unit(F.adaptive_avg_pool2d(deepest, side)), deepest.shape[2:])
            for unit, side in zip(self.pooled, self._pools, strict=True)
        ]
        maps = self.top(torch.cat([deepest, *pooled], dim=1))
        found = [maps]
        for lateral, smooth, here in zip(self.lateral, self.smooth, finer, strict=True):
            maps = lateral(here) + _resized(maps, here.shape[2:])
            found.append(smooth(maps))
        size = found[-1].shape[2:]
        return (self.join(torch.cat([_resized(x, size) for x in reversed(found)], dim=1)),)

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the joining layer."""
        return self.join.parameters()


class HRNetFusion(Neck):
    """HRNetV2's representation: all maps at the finest stride, mixed by a 1x1 convolution.

    Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", 2019 (arXiv
    1904.04514), as in Vandenhende et al. 2021: maps are enlarged bilinearly and joined finest first
    by a 1x1 convolution with bias, batch norm and ReLU, and the channels stay as many as all maps
    have. On the 18, 36, 72 and 144 channels of HRNet-W18 it has 73,710 parameters.

    Args:
        features: all maps are read.

    Raises:
        UsageError: there is no map.
    """

    def __init__(self, features: FeatureInfo) -> None:
        super().__init__()
        self._places, inputs, strides = levels_of(features, "hrnet")
        channels = sum(inputs)
        self.out_channels, self.strides = (channels,), (strides[-1],)
        self.join = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute maps of any strides -> (B, sum of channels, H / s, W / s), s the finest one."""
        maps = [features[place] for place in reversed(self._places)]
        size = maps[0].shape[2:]
        return (self.join(torch.cat([_resized(x, size) for x in maps], dim=1)),)

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the joining layer."""
        return self.join.parameters()


class DPTFusion(Neck):
    """The fusion of DPT: residual units that add map after map, from the deepest to the finest.

    Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021 (arXiv 2103.13413), behind
    its reassembling of tokens, which is a backbone's matter. The map has half the finest stride. On
    96, 192, 384 and 768 channels it has 11,842,048 parameters; the published code has 1,180,160
    more, those of a unit of the deepest level that nothing reaches.

    Args:
        features: all maps are read.
        channels: of every layer and of the map.

    Raises:
        UsageError: there is no map, or the number is not positive.
    """

    def __init__(self, features: FeatureInfo, *, channels: Channels = 256) -> None:
        super().__init__()
        _check_positive("dpt", channels=channels)
        self._places, inputs, strides = levels_of(features, "dpt")
        self._enlarges = strides[-1] % 2 == 0
        self.out_channels = (channels,)
        self.strides = (strides[-1] // 2 if self._enlarges else strides[-1],)
        self.lateral = nn.ModuleList(
            nn.Conv2d(c, channels, 3, padding=1, bias=False) for c in inputs
        )
        self.added = nn.ModuleList(_Residual(channels) for _ in inputs[1:])
        self.fused = nn.ModuleList(_Residual(channels) for _ in inputs)
        self.project = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in inputs)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute maps of any strides -> (B, channels, 2 H / s, 2 W / s), s the finest one."""
        maps = [layer(features[p]) for layer, p in zip(self.lateral, self._places, strict=True)]
        sizes = [tuple(x.shape[2:]) for x in maps[1:]]
        height, width = maps[-1].shape[2:]
        sizes.append((2 * height, 2 * width) if self._enlarges else (height, width))
        fused: Tensor | None = None
        for number, (here, size) in enumerate(zip(maps, sizes, strict=True)):
            total = here if fused is None else fused + self.added[number - 1](here)
            total = F.interpolate(
                self.fused[number](total), size, mode="bilinear", align_corners=True
            )
            fused = self.project[number](total)
        assert fused is not None
        return (fused,)

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last projection."""
        return self.project[-1].parameters()


class _Residual(nn.Module):
    """ReLU and a 3x3 convolution, twice, beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        changed: Tensor = self.second(self.first(maps.relu()).relu())
        return maps + changed


def _unit(channels: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _group_unit(channels: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
    norm = nn.GroupNorm(math.gcd(32, outputs), outputs)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def _check_positive(decoder: str, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"the {decoder} decoder: {name} must be positive, not {number}")
