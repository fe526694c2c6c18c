"""Heads with a decoder of their own: a neck, and an output layer behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import Head, Neck
from mtlcore.ranges import Channels, Dilations, Fraction
from mtlcore.standard.decoders import FPN, DPTFusion, HRNetFusion, SegFormerMLP, UPerNet
from mtlcore.standard.unet import UNetNeck
from mtlcore.tasks import Task


@final
class DecoderHead(Head):
    """A decoder of the task's own, and an output layer; enlarged bilinearly to the input's size.

    Args:
        task: its `channels` are the outputs.
        decoder: reads the features.
        output: from the decoder's map to (B, task.channels, h, w).

    Raises:
        UsageError: the task has no value per pixel.
    """

    def __init__(self, task: Task, decoder: Neck, output: nn.Module) -> None:
        super().__init__()
        _check_layout(task)
        self.decoder = decoder
        self.output = output
        self._stride = decoder.strides[-1]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predict from the features -> (B, task.channels, H, W)."""
        maps = self.decoder(features)[-1]
        height, width = maps.shape[2:]
        prediction: Tensor = self.output(maps)
        size = (self._stride * height, self._stride * width)
        if tuple(prediction.shape[2:]) == size:
            return prediction
        return F.interpolate(prediction, size, mode="bilinear", align_corners=False)

    def reset_parameters(self) -> None:
        """Re-initialise the decoder, and the output layer as torch does."""
        self.decoder.reset_parameters()
        for module in self.output.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()


def fpn(
    task: Task,
    features: FeatureInfo,
    *,
    channels: Channels = 256,
    branch: Channels = 128,
    dropout: Fraction = 0.0,
) -> DecoderHead:
    """Predict from a feature pyramid of the task's own, see `mtlcore.standard.decoders.FPN`.

    Args:
        task: its `channels` are the outputs.
        features: all maps are read.
        channels: of the pyramid.
        branch: channels of the branch, which the output layer reads.
        dropout: probability of dropping a channel before the output layer.
    """
    _check_layout(task)
    return _with_output(task, FPN(features, channels=channels, branch=branch), dropout)


def upernet(
    task: Task,
    features: FeatureInfo,
    *,
    channels: Channels = 512,
    pools: Dilations = (1, 2, 3, 6),
    dropout: Fraction = 0.1,
) -> DecoderHead:
    """Predict by a UPerNet of the task's own, see `mtlcore.standard.decoders.UPerNet`.

    Args:
        task: its `channels` are the outputs.
        features: all maps are read.
        channels: of every layer.
        pools: sides of the grids to which the deepest map is pooled.
        dropout: probability of dropping a channel before the output layer.
    """
    _check_layout(task)
    return _with_output(task, UPerNet(features, channels=channels, pools=pools), dropout)


def segformer_mlp(
    task: Task, features: FeatureInfo, *, channels: Channels = 256, dropout: Fraction = 0.1
) -> DecoderHead:
    """Predict by SegFormer's head, see `mtlcore.standard.decoders.SegFormerMLP`.

    On the maps of B0 it has 394,752 + 257 n parameters for n outputs.

    Args:
        task: its `channels` are the outputs.
        features: all maps are read.
        channels: of every layer; 256 for B0, 768 for the larger ones.
        dropout: probability of dropping a channel before the output layer.
    """
    _check_layout(task)
    return _with_output(task, SegFormerMLP(features, channels=channels), dropout)


def hrnet(task: Task, features: FeatureInfo, *, dropout: Fraction = 0.0) -> DecoderHead:
    """Predict by HRNetV2's head, see `mtlcore.standard.decoders.HRNetFusion`.

    On the maps of HRNet-W18 it has 73,710 + 271 n parameters for n outputs.

    Args:
        task: its `channels` are the outputs.
        features: all maps are read.
        dropout: probability of dropping a channel before the output layer.
    """
    _check_layout(task)
    return _with_output(task, HRNetFusion(features), dropout)


def unet(task: Task, features: FeatureInfo, *, dropout: Fraction = 0.0) -> DecoderHead:
    """Predict by a U-Net decoder of the task's own, see `mtlcore.standard.unet.UNetNeck`.

    Args:
        task: its `channels` are the outputs.
        features: all maps are read.
        dropout: probability of dropping a channel before the output layer.
    """
    _check_layout(task)
    return _with_output(task, UNetNeck(features), dropout)


def dpt(
    task: Task,
    features: FeatureInfo,
    *,
    channels: Channels = 256,
    output: Literal["segmentation", "depth"] = "segmentation",
    non_negative: bool = False,
    dropout: Fraction = 0.1,
) -> DecoderHead:
    """Predict by DPT's fusion and one of its two outputs.

    See `mtlcore.standard.decoders.DPTFusion`. With 256 channels, the outputs have 590,336 + 257 n
    (segmentation) and 331,936 + 33 n (depth) parameters for n values per pixel.

    Args:
        task: its `channels` are the outputs.
        features: all maps are read.
        channels: of every layer.
        output: "segmentation": a 3x3 convolution with batch norm, and a 1x1 one; "depth": three
            convolutions that halve the channels, enlarge twice and go on with 32.
        non_negative: end in ReLU, as the published depth head does.
        dropout: probability of dropping a value before the last layer of "segmentation".
    """
    _check_dropout(task, dropout)
    layers: list[nn.Module]
    if output == "segmentation":
        layers = [
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(channels, task.channels, 1),
        ]
    else:
        half = max(1, channels // 2)
        layers = [
            nn.Conv2d(channels, half, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(half, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, task.channels, 1),
        ]
    if non_negative:
        layers.append(nn.ReLU())
    return DecoderHead(task, DPTFusion(features, channels=channels), nn.Sequential(*layers))


def _with_output(task: Task, decoder: Neck, dropout: float) -> DecoderHead:
    _check_dropout(task, dropout)
    output = nn.Conv2d(decoder.out_channels[-1], task.channels, 1)
    return DecoderHead(task, decoder, nn.Sequential(nn.Dropout2d(dropout), output))


def _check_layout(task: Task) -> None:
    """Refuse a task without a value per pixel, before its decoder is made."""
    if task.layout != "map":
        raise UsageError(
            f"task {task.name!r} has one label per sample; a decoder predicts a map: choose the "
            "linear head"
        )


def _check_dropout(task: Task, dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise UsageError(f"head of task {task.name!r}: dropout {dropout} must be from 0 to below 1")
