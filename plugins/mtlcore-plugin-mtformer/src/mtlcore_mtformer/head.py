"""The light branch from a task's map to its prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import Head
from mtlcore.tasks import Task


@final
class MTFormerHead(Head):
    """A 1x1 convolution with batch norm and ReLU, and a 1x1 convolution, on the main map.

    The head of MTFormer's code (Xu, Zhao, Vineet, Lim and Torralba, ECCV 2022). If the map is
    coarser than the input, the prediction is enlarged bilinearly.

    Args:
        task: its `channels` are the outputs.
        features: the head reads the main map (`FeatureInfo.main_map`).

    Raises:
        UsageError: the task has no value per pixel.
    """

    def __init__(self, task: Task, features: FeatureInfo) -> None:
        super().__init__()
        if task.layout != "map":
            raise UsageError(
                f"task {task.name!r} has one label per sample; the mtformer head predicts a map"
            )
        self.place = features.main_map
        channels = features.channels[self.place]
        self.stride = features.strides[self.place]
        self.hidden = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.output = nn.Conv2d(channels, task.channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predict from the main map, (B, c, H / s, W / s) -> (B, task.channels, H, W)."""
        hidden = F.relu(self.norm(self.hidden(features[self.place])))
        prediction: Tensor = self.output(hidden)
        if self.stride == 1:
            return prediction
        return F.interpolate(
            prediction, scale_factor=self.stride, mode="bilinear", align_corners=False
        )

    def reset_parameters(self) -> None:
        """Re-initialise as torch does."""
        for layer in (self.hidden, self.norm, self.output):
            layer.reset_parameters()
