"""Heads, from a backbone's features to one task's prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import Head
from mtlcore.ranges import Channels, Dilations, Fraction
from mtlcore.standard.segnet import conv, initialise
from mtlcore.tasks import Task


class MapHead(Head):
    """Base of heads that predict a value per pixel from the main map.

    Args:
        task: its `channels` are the outputs.
        features: the head reads the main map (`FeatureInfo.main_map`).

    Attributes:
        place: of the main map.
        inputs: its channels.
        stride: its stride.

    Raises:
        UsageError: the task has no value per pixel.
    """

    def __init__(self, task: Task, features: FeatureInfo) -> None:
        super().__init__()
        if task.layout != "map":
            raise UsageError(
                f"task {task.name!r} has one label per sample, and {type(self).__name__} predicts "
                "a map: choose the linear head"
            )
        self.place = features.main_map
        self.inputs = features.channels[self.place]
        self.stride = features.strides[self.place]

    def enlarged(self, prediction: Tensor) -> Tensor:
        """Enlarge (B, n, H / stride, W / stride) bilinearly to the size of the input."""
        if self.stride == 1:
            return prediction
        return F.interpolate(
            prediction, scale_factor=self.stride, mode="bilinear", align_corners=False
        )


class ConvHead(MapHead):
    """A 3x3 and a 1x1 convolution on the main map, without an activation between them.

    The head of MTAN's published code (Liu, Johns and Davison, CVPR 2019, arXiv 1803.10704), except
    that normalising (log-softmax, unit normals) is left to losses and metrics. If the map is
    coarser than the input, the prediction is enlarged bilinearly.

    Args:
        task: its `channels` are the outputs.
        features: the head reads the main map (`FeatureInfo.main_map`).

    Raises:
        UsageError: the task has no value per pixel.
    """

    def __init__(self, task: Task, features: FeatureInfo) -> None:
        super().__init__(task, features)
        self.hidden = conv(self.inputs, self.inputs)
        self.output = conv(self.inputs, task.channels, kernel=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predict from the main map, (B, c, H / s, W / s) -> (B, task.channels, H, W)."""
        return self.enlarged(self.output(self.hidden(features[self.place])))

    def reset_parameters(self) -> None:
        """Re-initialise: Xavier normal weights, zero biases."""
        initialise(self)


class PointwiseHead(MapHead):
    """A 1x1 convolution on the main map: the least that makes a prediction of features.

    It is enough where a backbone computes features for the task alone, as PAD-Net and MTI-Net do
    for auxiliary tasks. If the map is coarser than the input, the prediction is enlarged
    bilinearly.

    Args:
        task: its `channels` are the outputs.
        features: the head reads the main map (`FeatureInfo.main_map`).

    Raises:
        UsageError: the task has no value per pixel.
    """

    def __init__(self, task: Task, features: FeatureInfo) -> None:
        super().__init__(task, features)
        self.output = nn.Conv2d(self.inputs, task.channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predict from the main map, (B, c, H / s, W / s) -> (B, task.channels, H, W)."""
        return self.enlarged(self.output(features[self.place]))

    def reset_parameters(self) -> None:
        """Re-initialise as `nn.Conv2d` does."""
        self.output.reset_parameters()


class DeepLabHead(MapHead):
    """DeepLabV3's head on the main map: pyramid pooling by dilation, then a 3x3 and a 1x1 layer.

    Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (arXiv
    1706.05587), as in torchvision and Vandenhende et al. 2021: a 1x1 convolution, a dilated 3x3
    convolution per rate and the mean of the whole map, in parallel, joined by a 1x1 convolution.
    All but the last convolution have batch norm and ReLU. The prediction is enlarged bilinearly to
    the size of the input. If the input was padded, the mean includes the padding. With 2048 input
    channels and n outputs it has 16,125,440 + 257 n parameters.

    Args:
        task: its `channels` are the outputs.
        features: the head reads the main map; of an encoder's pyramid that is the deepest one.
        rates: dilations for a map of stride 8; halve them for stride 16.
        channels: outputs of every branch and hidden layer.
        dropout: probability of dropout before the 3x3 layer.

    Raises:
        UsageError: a rate, the number of channels or the dropout that makes no sense, or a task
            without a value per pixel.
    """

    def __init__(
        self,
        task: Task,
        features: FeatureInfo,
        *,
        rates: Dilations = (12, 24, 36),
        channels: Channels = 256,
        dropout: Fraction = 0.5,
    ) -> None:
        super().__init__(task, features)
        if min(channels, *rates) < 1 or not 0 <= dropout < 1:
            raise UsageError(
                f"head of task {task.name!r}: rates {list(rates)} and channels {channels} must be "
                f"positive, dropout {dropout} from 0 to below 1"
            )
        inputs = self.inputs
        self.branches = nn.ModuleList(
            [_unit(inputs, channels), *(_unit(inputs, channels, 3, rate) for rate in rates)]
        )
        self.pooled = _unit(inputs, channels)
        self.join = _unit((len(rates) + 2) * channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.hidden = _unit(channels, channels, 3)
        self.output = nn.Conv2d(channels, task.channels, 1)
        self.reset_parameters()

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predict from the main map, (B, c, H / s, W / s) -> (B, task.channels, H, W).

        Raises:
            ValueError: a batch of one sample in training, whose mean batch norm cannot normalise.
        """
        maps = features[self.place]
        mean: Tensor = self.pooled(maps.mean((2, 3), keepdim=True))
        parts = [*(branch(maps) for branch in self.branches), mean.expand(-1, -1, *maps.shape[2:])]
        joined = self.dropout(self.join(torch.cat(parts, dim=1)))
        return self.enlarged(self.output(self.hidden(joined)))

    def reset_parameters(self) -> None:
        """Re-initialise: Kaiming normal weights (fan in), zero biases, new batch norms."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, nn.BatchNorm2d):
                part.reset_parameters()


def _unit(channels: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(
        channels, outputs, kernel, padding=padding, dilation=dilation, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class LinearHead(Head):
    """One linear layer for tasks with a label or a vector per sample.

    It reads a vector that stands beside the maps, such as a class token; where there is none, the
    main of the features: a vector as it is, a map by its mean over all pixels, padding included.

    Args:
        task: its `channels` are the outputs.
        features: the head reads one map or vector.

    Raises:
        UsageError: the task has a value per pixel.
    """

    def __init__(self, task: Task, features: FeatureInfo) -> None:
        super().__init__()
        if task.is_dense:
            raise UsageError(
                f"task {task.name!r} has a value per {'pixel' if task.layout == 'map' else 'place'}"
                "; the linear head predicts one per sample"
            )
        vector = features.vector
        self.place = features.main_map if vector is None else vector
        self.output = nn.Linear(features.channels[self.place], task.channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predict from a map (B, c, h, w) or a vector (B, c) -> (B, task.channels)."""
        read = features[self.place]
        prediction: Tensor = self.output(read.mean((2, 3)) if read.dim() == 4 else read)
        return prediction

    def reset_parameters(self) -> None:
        """Re-initialise as `nn.Linear` does."""
        self.output.reset_parameters()


class TaggingHead(Head):
    """One linear layer at each place of a sequence, such as a token.

    It reads the main of the features, (B, c, L). As in BERT (Devlin et al., NAACL 2019, section
    5.3), where a word of several tokens is judged by its first one.

    Args:
        task: its `channels` are the outputs.
        features: the head reads the main one.
        dropout: probability of dropout before the layer.

    Raises:
        UsageError: the task has no value per place of a sequence.
    """

    def __init__(self, task: Task, features: FeatureInfo, *, dropout: Fraction = 0.0) -> None:
        super().__init__()
        if task.layout != "sequence":
            raise UsageError(
                f"task {task.name!r} has no value per place of a sequence, which is what the "
                "tagging head predicts"
            )
        self.place = features.main_map
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(features.channels[self.place], task.channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predict from a sequence, (B, c, L) -> (B, task.channels, L).

        Raises:
            ValueError: the backbone gives no sequence.
        """
        read = features[self.place]
        if read.dim() != 3:
            raise ValueError(f"a sequence (B, C, L) is needed, and there is {list(read.shape)}")
        prediction: Tensor = self.output(self.dropout(read.transpose(1, 2)))
        return prediction.transpose(1, 2)

    def reset_parameters(self) -> None:
        """Re-initialise as `nn.Linear` does."""
        self.output.reset_parameters()
