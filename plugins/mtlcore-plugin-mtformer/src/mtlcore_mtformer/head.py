"""The light branch from a task's map to its prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.features import FeatureInfo
from mtlcore.standard.heads import MapHead
from mtlcore.tasks import Task


@final
class MTFormerHead(MapHead):
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
        super().__init__(task, features)
        self.hidden = nn.Conv2d(self.inputs, self.inputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(self.inputs)
        self.output = nn.Conv2d(self.inputs, task.channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Predict from the main map, (B, c, H / s, W / s) -> (B, task.channels, H, W)."""
        hidden = F.relu(self.norm(self.hidden(features[self.place])))
        return self.enlarged(self.output(hidden))

    def reset_parameters(self) -> None:
        """Re-initialise as torch does."""
        for layer in (self.hidden, self.norm, self.output):
            layer.reset_parameters()
