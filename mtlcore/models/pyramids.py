"""Pyramids of maps from a plain transformer, all of whose blocks have one resolution."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from fractions import Fraction
from typing import final

from torch import Tensor, nn

__all__ = ["DPTPyramid", "Pyramid", "SimplePyramid", "levels"]

#: Sizes of the maps, in units of the transformer's, coarsest first.
SCALES = (Fraction(1, 2), Fraction(1), Fraction(2), Fraction(4))


def levels(patch: int) -> dict[int, Fraction]:
    """Return stride -> scale of the maps of a pyramid, coarsest first.

    Args:
        patch: Stride of the transformer. A scale that would give no whole stride is left out:
            patches of 14 pixels have no map of stride 3.5.
    """
    strides = {patch / scale: scale for scale in SCALES}
    return {int(stride): scale for stride, scale in strides.items() if stride.denominator == 1}


@final
class ChannelNorm(nn.LayerNorm):
    """Layer norm of a map (B, C, H, W) over its channels, at every place by itself."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pyramid(nn.Module, abc.ABC):
    """Makes maps of several strides from maps of a transformer's blocks."""

    @abc.abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the pyramid, coarsest map first.

        Args:
            maps: (B, C, H / patch, W / patch) of the chosen blocks, the first block's first.
        """


@final
class SimplePyramid(Pyramid):
    """The simple feature pyramid of ViTDet: every map is made from the last block's.

    Li, Mao, Girshick and He, "Exploring Plain Vision Transformer Backbones for Object Detection",
    ECCV 2022 (arXiv 2203.16527): transposed convolutions enlarge the map by 2 and by 4, max-pooling
    halves it; a 1x1 and a 3x3 convolution follow, each with layer norm.

    Args:
        inputs: Channels of the transformer's map.
        channels: Of each map of the pyramid.
        scales: Of the maps, coarsest first.
    """

    def __init__(self, inputs: int, channels: int, scales: Sequence[Fraction]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_simple(inputs, channels, scale) for scale in scales)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the pyramid from the last of the maps."""
        return tuple(level(maps[-1]) for level in self.levels)


@final
class DPTPyramid(Pyramid):
    """The reassembly of DPT: the coarsest map is the last block's, the finest the first one's.

    Ranftl, Bochkovskiy and Koltun, "Vision Transformers for Dense Prediction", ICCV 2021 (arXiv
    2103.13413): per block a 1x1 convolution, resampling (a transposed convolution by 4 or 2, none,
    or a 3x3 convolution of stride 2) and a 3x3 convolution. Unlike there, all maps have the same
    number of channels from the projection on, and the readout token is ignored.

    Args:
        inputs: Channels of the transformer's maps.
        channels: Of each map of the pyramid.
        scales: Of the maps, coarsest first; one block each.
    """

    def __init__(self, inputs: int, channels: int, scales: Sequence[Fraction]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_reassembled(inputs, channels, scale) for scale in scales)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute one map of the pyramid from each map."""
        pairs = zip(self.levels, reversed(maps), strict=True)
        return tuple(level(block) for level, block in pairs)


def _simple(inputs: int, channels: int, scale: Fraction) -> nn.Sequential:
    layers, width = list[nn.Module](), inputs
    if scale < 1:
        layers.append(nn.MaxPool2d(2))
    for number in range(int(scale).bit_length() - 1 if scale > 1 else 0):
        if number:
            layers += [ChannelNorm(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    return nn.Sequential(
        *layers,
        nn.Conv2d(width, channels, 1, bias=False),
        ChannelNorm(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        ChannelNorm(channels),
    )


def _reassembled(inputs: int, channels: int, scale: Fraction) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, channels, 1)]
    if scale > 1:
        layers.append(nn.ConvTranspose2d(channels, channels, int(scale), stride=int(scale)))
    elif scale < 1:
        layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
    layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
    return nn.Sequential(*layers)
