"""The head that MTML's published network has for edges."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from torch import Tensor

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import Head
from mtlcore.ranges import Channels, Dilations, Fraction
from mtlcore.standard.heads import DeepLabHead
from mtlcore.tasks import Task


class RepeatedDeepLab(Head):
    """DeepLab's head that predicts every channel several times and answers with the mean.

    MTML's edge head has three outputs for labels of one channel: 16,126,211 parameters on 2048
    channels. The released code compares each output with the label; here it is their mean that the
    loss and the metrics see, so that any loss and metric of the task fits.

    Args:
        task: whose `channels` are predicted.
        features: of which the last map is read.
        outputs: per channel.
        rates: dilations, meant for a map of stride 8; halve them for 16.
        channels: of every branch and layer.
        dropout: part of the channels' values that is dropped before the 3x3 layer.

    Raises:
        UsageError: a number that makes no sense, or a task without a value per pixel.
    """

    def __init__(
        self,
        task: Task,
        features: FeatureInfo,
        *,
        outputs: Channels = 3,
        rates: Dilations = (12, 24, 36),
        channels: Channels = 256,
        dropout: Fraction = 0.5,
    ) -> None:
        super().__init__()
        if outputs < 1:
            raise UsageError(f"head of task {task.name!r}: outputs {outputs} must be positive")
        self._shape = (task.channels, outputs)
        wide = attrs.evolve(task, channels=task.channels * outputs, class_names=())
        self.deeplab = DeepLabHead(wide, features, rates=rates, channels=channels, dropout=dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predict from the last map, (B, c, H / s, W / s) -> (B, task.channels, H, W)."""
        predictions: Tensor = self.deeplab(features)
        size = predictions.shape[2:]
        return predictions.reshape(-1, *self._shape, *size).mean(2)

    def reset_parameters(self) -> None:
        """Re-initialise as DeepLab's head does."""
        self.deeplab.reset_parameters()
