"""U-Net, with a decoder for each task or one for all.

Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015 (arXiv 1505.04597), except that convolutions pad
(a map keeps its size, and skipped maps need no cropping) and are followed by batch norm, as is
usual today. With a decoder per task, tasks part after the encoder, as in IRA (arXiv 2008.02043).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, ExchangePoint, Neck
from mtlcore.ranges import Width
from mtlcore.standard.decoders import levels_of
from mtlcore.standard.segnet import scaled
from mtlcore.tasks import Task

CHANNELS = (64, 128, 256, 512, 1024)
"""Channels per level at width 1, from the input's resolution down."""

STRIDES = (16, 1)
"""Strides of the latent and of the decoded map."""


class UNetEncoder(nn.Module):
    """Two conv units per level, 2x2 max-pooling between levels.

    Args:
        channels: per level, shallowest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        inputs = (3, *channels[:-1])
        self.levels = nn.ModuleList(map(_two_convs, inputs, channels))
        self.pool = nn.MaxPool2d(2)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Compute a map (B, c, H / 2^level, W / 2^level) per level from images (B, 3, H, W)."""
        maps = [self.levels[0](inputs)]
        for level in self.levels[1:]:
            maps.append(level(self.pool(maps[-1])))
        return maps


class UNetDecoder(nn.Module):
    """Per level upwards: a 2x2 transposed convolution, the encoder's map beside it, two conv units.

    Args:
        channels: per level, shallowest first.
        ratios: how much finer each level but the deepest is than the next deeper one; None: twice.
    """

    def __init__(self, channels: Sequence[int], ratios: Sequence[int] | None = None) -> None:
        super().__init__()
        upper, lower = channels[:-1], channels[1:]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, here, ratio, stride=ratio)
            for below, here, ratio in zip(lower, upper, ratios or [2] * len(upper), strict=True)
        )
        self.levels = nn.ModuleList(_two_convs(2 * here, here) for here in upper)
        _initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode the encoder's maps, shallowest first, to (B, c, H, W), c those of level 0."""
        decoded = maps[-1]
        for _, found in self.upwards(maps):
            decoded = found
        return decoded

    def upwards(self, maps: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what each level reads and what it computes, the deepest level first.

        Args:
            maps: of the encoder, shallowest first.

        Yields:
            The encoder's map beside the enlarged one (B, 2 c, H / s, W / s), and what the level
            makes of them (B, c, H / s, W / s).
        """
        decoded = maps[-1]
        for number in reversed(range(len(self.levels))):
            joined = torch.cat([maps[number], self.up[number](decoded)], dim=1)
            decoded = self.levels[number](joined)
            yield joined, decoded


class UNetNeck(Neck):
    """U-Net's decoder over any pyramid; its map has the channels and stride of the finest one.

    A level's convolutions have as many channels as the backbone's map of its stride. On U-Net's own
    pyramid (1024 to 64 channels, strides 16 to 1) it has the 12,190,400 parameters of its decoder.

    Args:
        features: all maps are read.

    Raises:
        UsageError: there are no two maps, or a stride is no multiple of the next finer one.
    """

    def __init__(self, features: FeatureInfo) -> None:
        super().__init__()
        self._places, channels, strides = levels_of(features, "unet")
        if len(strides) < 2:
            raise UsageError(
                "model: the unet decoder joins maps of several strides, and the backbone gives one "
                "map; let it give a pyramid (resnet: model.backbone.pyramid=true), or leave it out"
            )
        if any(deep % fine for deep, fine in pairwise(strides)):
            raise UsageError(
                f"model: the unet decoder needs strides that are multiples of the next finer one, "
                f"and the backbone's are {strides}; choose another decoder (mtl list necks)"
            )
        self.out_channels, self.strides = (channels[-1],), (strides[-1],)
        ratios = [deep // fine for deep, fine in pairwise(strides)]
        self.decoder = UNetDecoder(channels[::-1], ratios[::-1])

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute maps of several strides -> (B, c, H / s, W / s), s the finest one."""
        return (self.decoder([features[place] for place in reversed(self._places)]),)

    def reset_parameters(self) -> None:
        """Re-initialise, as U-Net does."""
        super().reset_parameters()
        _initialise(self)

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last convolution."""
        return _last_convolution(self.decoder).parameters()


class UNet(Backbone):
    """U-Net. Maps: latent (1024 width, stride 16) and decoded (64 width, stride 1).

    With a coarser output the decoder ends there: at stride 2 its map has 128 width channels.

    The decoded map is the task's own where decoders are per task; the latent one is always shared.
    Without a decoder, maps are those of the encoder's five levels (1024 to 64 width, stride 16 to
    1), for a neck or a head that reads several.
    At width 1 the encoder has 18,847,168 parameters and a decoder 12,190,400. Weights are drawn as
    the paper says: normal with variance 2 / (inputs of a filter); biases (of the transposed
    convolutions alone) are 0.

    Args:
        width: factor on all numbers of channels; 1 is the published size.
        decoder: "per-task": one each, whose parameters are the task's own; "shared": one for all;
            "none": the encoder alone.
        output_stride: height of the input divided by that of the decoded map, or of the finest map
            of the encoder alone; above 1, heads enlarge what they predict, and a step takes less.
    """

    input_multiple = STRIDES[0]
    input_kind = "image"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        width: Width = 1.0,
        decoder: Literal["per-task", "shared", "none"] = "per-task",
        output_stride: Literal[1, 2, 4, 8] = 1,
    ) -> None:
        super().__init__()
        channels = [scaled(c, width) for c in CHANNELS]
        self._channels = tuple(channels)
        self._finest = output_stride.bit_length() - 1
        given = channels[self._finest :]
        self.out_channels, self.strides = (given[-1], given[0]), (STRIDES[0], output_stride)
        if decoder == "none":
            self.out_channels, self.main_map = tuple(reversed(given)), 0
            self.strides = tuple(output_stride * 2**n for n in reversed(range(len(given))))
        self.encoder = UNetEncoder(channels)
        self._keys = {task.name: task.key for task in tasks}
        self.decoder = UNetDecoder(given) if decoder == "shared" else None
        own = {t.key: UNetDecoder(given) for t in tasks} if decoder == "per-task" else {}
        self.decoders = nn.ModuleDict(own)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the latent and the decoded map of images (B, 3, H, W), sides multiples of 16."""
        maps = self.encoder(inputs)[self._finest :]
        if self.decoder is not None:
            # What a loss reads of the latent map is a view of what the decoder reads, so that the
            # two maps together are crossed exactly once on every path to a loss.
            latent, decoded = maps[-1].view_as(maps[-1]), self.decoder(maps)
            return Features(shared=(latent, decoded), cut=(latent, decoded))
        if not self.decoders:
            return Features(shared=tuple(reversed(maps)))
        # The same for the maps that are skipped to the decoders: the next level of the encoder
        # reads the map itself, decoders read the view.
        views = [x.view_as(x) for x in maps]
        own = {task: (self.decoders[self._keys[task]](views),) for task in tasks}
        return Features(shared=(views[-1],), per_task=own, cut=tuple(reversed(views)))

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's decoder, if it has one."""
        return self.decoders[self._keys[task]].parameters() if self.decoders else ()

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last convolution of a shared decoder, or of the encoder."""
        if self.decoders:
            return ()
        last = self.encoder.levels[-1] if self.decoder is None else self.decoder
        return _last_convolution(last).parameters()

    def layer_groups(self) -> list[list[Parameter]]:
        """Return the levels of the encoder."""
        return [list(level.parameters()) for level in self.encoder.levels]

    def trunk_blocks(self) -> list[list[Parameter]]:
        """Return the levels of the encoder, then those of a shared decoder."""
        blocks = self.layer_groups()
        if isinstance(self.decoder, UNetDecoder):
            up, levels = self.decoder.up, self.decoder.levels
            blocks += [
                [*up[number].parameters(), *levels[number].parameters()]
                for number in reversed(range(len(levels)))
            ]
        return [*blocks, *([*d.parameters()] for d in self.decoders.values())]

    def exchange_points(self) -> list[ExchangePoint]:
        """Return the maps of the encoder's levels, then those of a decoder's if there is one."""
        points = [
            ExchangePoint(module=level, channels=channels, parameters=(*level.parameters(),))
            for level, channels in zip(self.encoder.levels, self._channels, strict=True)
        ]
        decoders = [self.decoder] if self.decoder is not None else [*self.decoders.children()]
        if len(decoders) == 1 and isinstance(decoders[0], UNetDecoder):
            up, levels = decoders[0].up, decoders[0].levels
            points += [
                ExchangePoint(
                    module=levels[number],
                    channels=self._channels[self._finest + number],
                    parameters=(*up[number].parameters(), *levels[number].parameters()),
                )
                for number in reversed(range(len(levels)))
            ]
        return points


def _last_convolution(module: nn.Module) -> nn.Module:
    part = module.levels[0] if isinstance(module, UNetDecoder) else module
    *_, last = (m for m in part.modules() if isinstance(m, nn.Conv2d))
    return last


def _two_convs(channels: int, outputs: int) -> nn.Sequential:
    units = nn.Sequential(*_conv_unit(channels, outputs), *_conv_unit(outputs, outputs))
    _initialise(units)
    return units


def _conv_unit(channels: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        elif isinstance(part, nn.ConvTranspose2d):
            # Windows do not overlap: each output is a sum over the input channels alone.
            nn.init.normal_(part.weight, std=(2 / part.in_channels) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
