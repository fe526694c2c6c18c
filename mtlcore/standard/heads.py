"""Heads: from a backbone's maps to one task's prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mtlcore.models import FeatureInfo, Head
from mtlcore.standard.segnet import conv, initialise
from mtlcore.tasks import Task


class ConvHead(Head):
    """A 3x3 and a 1x1 convolution on the last map, with nothing between them.

    The head of MTAN's published code (Liu, Johns and Davison, CVPR 2019, arXiv 1803.10704), except
    that normalising (log-softmax, unit normals) is left to losses and metrics. A map coarser than
    the input is predicted on as it is and the prediction enlarged bilinearly.

    Args:
        task: whose `channels` are predicted.
        features: of which the last map is read.
    """

    def __init__(self, task: Task, features: FeatureInfo) -> None:
        super().__init__()
        channels = features.channels[-1]
        self.stride = features.strides[-1]
        self.hidden = conv(channels, channels)
        self.output = conv(channels, task.channels, kernel=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The last map (B, c, H / s, W / s), s its stride -> (B, task.channels, H, W), raw."""
        prediction: Tensor = self.output(self.hidden(features[-1]))
        if self.stride == 1:
            return prediction
        return F.interpolate(
            prediction, scale_factor=self.stride, mode="bilinear", align_corners=False
        )

    def reset_parameters(self) -> None:
        """Xavier normal weights, zero biases."""
        initialise(self)
