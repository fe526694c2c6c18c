"""U-Net, with a decoder for each task or one for all.

Ronneberger, Fischer and Brox, "U-Net", MICCAI 2015 (arXiv 1505.04597), except that convolutions pad
(a map keeps its size, and skipped maps need no cropping) and are followed by batch norm, as is
usual today. With a decoder per task, tasks part after the encoder, as in IRA (arXiv 2008.02043).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.models import Backbone
from mtlcore.ranges import Width
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
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        upper, lower = channels[:-1], channels[1:]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, here, 2, stride=2)
            for below, here in zip(lower, upper, strict=True)
        )
        self.levels = nn.ModuleList(_two_convs(2 * here, here) for here in upper)
        _initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode the encoder's maps, shallowest first, to (B, c, H, W), c those of level 0."""
        decoded = maps[-1]
        for number in reversed(range(len(self.levels))):
            joined = torch.cat([maps[number], self.up[number](decoded)], dim=1)
            decoded = self.levels[number](joined)
        return decoded


class UNet(Backbone):
    """U-Net. Maps: latent (1024 width, stride 16) and decoded (64 width, stride 1).

    The decoded map is the task's own where decoders are per task; the latent one is always shared.
    At width 1 the encoder has 18,847,168 parameters and a decoder 12,190,400. Weights are drawn as
    the paper says: normal with variance 2 / (inputs of a filter); biases (of the transposed
    convolutions alone) are 0.

    Args:
        width: factor on all numbers of channels; 1 is the published size.
        decoder: "per-task": one each, whose parameters are the task's own; "shared": one for all.
    """

    strides = STRIDES
    input_multiple = STRIDES[0]
    input_kind = "image"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        width: Width = 1.0,
        decoder: Literal["per-task", "shared"] = "per-task",
    ) -> None:
        super().__init__()
        channels = [scaled(c, width) for c in CHANNELS]
        self.out_channels = (channels[-1], channels[0])
        self.encoder = UNetEncoder(channels)
        self._keys = {task.name: task.key for task in tasks}
        self.decoder = UNetDecoder(channels) if decoder == "shared" else None
        own = {} if decoder == "shared" else {t.key: UNetDecoder(channels) for t in tasks}
        self.decoders = nn.ModuleDict(own)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the latent and the decoded map of images (B, 3, H, W), sides multiples of 16."""
        maps = self.encoder(inputs)
        if self.decoder is not None:
            # What a loss reads of the latent map is a view of what the decoder reads, so that the
            # two maps together are crossed exactly once on every path to a loss.
            latent, decoded = maps[-1].view_as(maps[-1]), self.decoder(maps)
            return Features(shared=(latent, decoded), cut=(latent, decoded))
        # The same for the maps that are skipped to the decoders: the next level of the encoder
        # reads the map itself, decoders read the view.
        views = [x.view_as(x) for x in maps]
        own = {task: (self.decoders[self._keys[task]](views),) for task in tasks}
        return Features(shared=(views[-1],), per_task=own, cut=tuple(reversed(views)))

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's decoder, if it has one."""
        return () if self.decoder is not None else self.decoders[self._keys[task]].parameters()

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last convolution of a shared decoder."""
        if self.decoder is None:
            return ()
        *_, last = (m for m in self.decoder.levels[0].modules() if isinstance(m, nn.Conv2d))
        return last.parameters()


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
