"""SegNet, the encoder-decoder of many multi-task papers, and the blocks it is composed of.

Badrinarayanan, Kendall and Cipolla, "SegNet", TPAMI 2017 (arXiv 1511.00561), in the form of MTAN's
published code (Liu, Johns and Davison, CVPR 2019, arXiv 1803.10704), which other papers build on:
VGG-16's thirteen convolutions, and a decoder that changes channels in the first convolution of a
level where SegNet changes them in the last.

Levels count from 0 at the input's resolution to 4 at a sixteenth of it; the latent map is one
pooling deeper. With `f` the filters at a level, the encoder has `first` (to f) and `rest` (f to f),
the decoder the same with the next shallower level's f. Sides must be multiples of 32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.models import Backbone, ExchangePoint
from mtlcore.ranges import Width
from mtlcore.tasks import Task

FILTERS = (64, 128, 256, 512, 512)
"""Filters per level at width 1."""

REST = (1, 1, 2, 2, 2)
"""Convolutions per level after its first one."""

STRIDES = (32, 1)
"""Strides of the latent and of the decoded map."""


def scaled(channels: int, width: float) -> int:
    """Return a published number of channels times the width factor, at least 1.

    Raises:
        ValueError: the width is not positive.
    """
    if width <= 0:
        raise ValueError(f"width {width} must be positive")
    return max(1, round(channels * width))


def filters_of(width: float) -> tuple[int, ...]:
    """Return the number of filters per level at this width."""
    return tuple(scaled(channels, width) for channels in FILTERS)


def initialise(module: nn.Module) -> None:
    """Re-initialise all convolutions and batch norms in `module`, as MTAN's code does.

    Weights of convolutions are Xavier normal, their biases 0; a batch norm scales by 1, shifts by 0
    and forgets its running statistics. Draws from torch's global generator.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()


def conv(channels: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps the size of its map, initialised as in `initialise`."""
    layer = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2)
    initialise(layer)
    return layer


def conv_unit(channels: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Return a convolution with batch norm and ReLU, the unit of this network."""
    return nn.Sequential(
        conv(channels, outputs, kernel), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def unpool(maps: Tensor, indices: Tensor) -> Tensor:
    """Put pooled values (B, C, H, W) back where they came from: (B, C, 2H, 2W), zeros elsewhere.

    `F.max_unpool2d` gives the same, but more slowly, and on a GPU torch counts it as
    non-deterministic. Windows of 2x2 pooling do not overlap, so that no two values meet here.
    """
    batch, channels, height, width = maps.shape
    empty = maps.new_zeros(batch, channels, 4 * height * width)
    filled = empty.scatter_(2, indices.flatten(2), maps.flatten(2))
    return filled.view(batch, channels, 2 * height, 2 * width)


class Level(nn.Module):
    """One level of an encoder or decoder: a conv unit that changes channels, and those after it.

    Args:
        channels: of its input.
        outputs: channels of both its maps.
        rest: number of conv units after the first.
    """

    def __init__(self, channels: int, outputs: int, rest: int) -> None:
        super().__init__()
        self.first = conv_unit(channels, outputs)
        self.rest = nn.Sequential(*(conv_unit(outputs, outputs) for _ in range(rest)))

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the first and of the last unit, (B, outputs, H, W) each."""
        first: Tensor = self.first(maps)
        return first, self.rest(first)


@dataclass  # not attrs: torch.compile can follow this one
class Encoded:
    """What a SegNet encoder computed; tuples have one map per level, shallowest first.

    Args:
        first: outputs of the levels' first units (B, f, H / 2^level, W / 2^level).
        full: outputs of all their units, before pooling; of the same shapes.
        indices: where pooling found its maxima (B, f, H / 2^(level + 1), W / 2^(level + 1)).
        latent: the last pooled map (B, f, H / 32, W / 32).
    """

    first: tuple[Tensor, ...]
    full: tuple[Tensor, ...]
    indices: tuple[Tensor, ...]
    latent: Tensor


@dataclass
class Decoded:
    """What a SegNet decoder computed; tuples have one map per level, shallowest first.

    Args:
        unpooled: inputs of the levels (B, f, H / 2^level, W / 2^level).
        full: outputs of all their units, with the filters of the next shallower level.
    """

    unpooled: tuple[Tensor, ...]
    full: tuple[Tensor, ...]

    @property
    def output(self) -> Tensor:
        """The decoded map (B, f, H, W) with the filters of level 0."""
        return self.full[0]


class SegNetEncoder(nn.Module):
    """The encoder: five levels, each followed by 2x2 max-pooling that remembers its maxima.

    Args:
        width: factor on all numbers of filters.
        rest: conv units per level after its first one.
        channels: of the input.
    """

    def __init__(self, width: Width = 1.0, rest: Sequence[int] = REST, channels: int = 3) -> None:
        super().__init__()
        filters = filters_of(width)
        inputs = (channels, *filters[:-1])
        self.levels = nn.ModuleList(map(Level, inputs, filters, rest))

    def forward(self, inputs: Tensor) -> Encoded:
        """Compute the maps of every level from (B, channels, H, W), sides multiples of 32."""
        maps = inputs
        firsts, fulls, places = [], [], []
        for level in self.levels:
            first, full = level(maps)
            maps, indices = F.max_pool2d(full, 2, return_indices=True)
            firsts.append(first)
            fulls.append(full)
            places.append(indices)
        return Encoded(tuple(firsts), tuple(fulls), tuple(places), maps)


class SegNetDecoder(nn.Module):
    """The decoder: from the deepest level up, un-pool with the encoder's indices, then convolve.

    Args:
        width: factor on all numbers of filters.
        rest: conv units per level after its first one.
    """

    def __init__(self, width: Width = 1.0, rest: Sequence[int] = REST) -> None:
        super().__init__()
        filters = filters_of(width)
        outputs = (filters[0], *filters[:-1])
        self.levels = nn.ModuleList(map(Level, filters, outputs, rest))

    def forward(self, latent: Tensor, indices: Sequence[Tensor]) -> Decoded:
        """Compute the maps of every level from a latent map (B, f, H / 32, W / 32)."""
        maps = latent
        unpooled, fulls = [], []
        for level, places in zip(reversed(self.levels), reversed(indices), strict=True):
            unpooled.append(unpool(maps, places))
            _, maps = level(unpooled[-1])
            fulls.append(maps)
        return Decoded(tuple(reversed(unpooled)), tuple(reversed(fulls)))


def split_features(encoder: SegNetEncoder, decoder: SegNetDecoder, inputs: Tensor) -> Features:
    """Return the features of one encoder and one decoder that all tasks share: latent, decoded.

    The latent map is handed out as a view of what the decoder reads. So the cut, this view and the
    decoded map, is crossed exactly once on every path to a loss, whether the loss reads the latent
    map, the decoded one or both. (With the latent map itself in the cut, what flows through the
    decoder would count twice; without it, a loss on the latent map would not be seen.)
    """
    encoded = encoder(inputs)
    latent = encoded.latent.view_as(encoded.latent)
    decoded = decoder(encoded.latent, encoded.indices).output
    return Features(shared=(latent, decoded), cut=(latent, decoded))


class SegNet(Backbone):
    """SegNet with one decoder for all tasks, which part only at their heads.

    MTAN's "split" baseline in its standard form. Maps: latent (512 width, stride 32) and decoded
    (64 width, stride 1).

    Args:
        width: factor on all numbers of filters; 1 is the published size, 24.9 million parameters.
    """

    strides = STRIDES
    input_multiple = STRIDES[0]
    input_kind = "image"

    def __init__(self, tasks: Sequence[Task], *, width: Width = 1.0) -> None:
        super().__init__()
        self._filters = filters_of(width)
        self.out_channels = (scaled(FILTERS[-1], width), scaled(FILTERS[0], width))
        self.encoder = SegNetEncoder(width)
        self.decoder = SegNetDecoder(width)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the two shared maps of images (B, 3, H, W), sides multiples of 32."""
        return split_features(self.encoder, self.decoder, inputs)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the decoder's last convolution."""
        *_, last = (m for m in self.decoder.levels[0].modules() if isinstance(m, nn.Conv2d))
        return last.parameters()

    def layer_groups(self) -> list[list[Parameter]]:
        """Return the levels of the encoder."""
        return [list(level.parameters()) for level in self.encoder.levels]

    def trunk_blocks(self) -> list[list[Parameter]]:
        """Return the levels of the encoder, then those of the decoder."""
        decoder = [list(level.parameters()) for level in reversed(self.decoder.levels)]
        return [*self.layer_groups(), *decoder]

    def exchange_points(self) -> list[ExchangePoint]:
        """Return the maps of the encoder's levels before pooling, and those of the decoder's."""
        levels = [*self.encoder.levels, *reversed(self.decoder.levels)]
        filters = [*self._filters, *reversed(self._filters[:-1]), self._filters[0]]
        return [
            ExchangePoint(module=level.rest, channels=channels, parameters=(*level.parameters(),))
            for level, channels in zip(levels, filters, strict=True)
            if isinstance(level, Level)
        ]
