"""The feature propagation module: what a scale hands to the next finer one, for every task.

Vandenhende, Georgoulis and Van Gool, ECCV 2020 (arXiv 2001.06902), section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from mtlcore.standard.resnet import BasicBlock
from mtlcore.tasks import Task

#: A squeeze-and-excitation block has so many times fewer channels inside.
REDUCTION = 16


@final
class FeaturePropagation(nn.Module):
    """Mixes the maps of all tasks, and gives each its share of the mixture beside its own map.

    The maps side by side pass two residual blocks, whose output weighs them by a softmax over the
    tasks at every channel and place; a third block brings the weighed maps to the channels of one
    task. Of these each task picks channels by squeeze-and-excitation, and adds them to its map.

    The published code takes the softmax over other groups than the paper: it reads channels that
    are ordered by task as if they were ordered by channel. Here it is over the tasks.

    Args:
        tasks: all, in the order in which their maps lie side by side.
        channels: of every task's map.
    """

    def __init__(self, tasks: Sequence[Task], channels: int) -> None:
        super().__init__()
        self._keys = {task.name: task.key for task in tasks}
        together = len(tasks) * channels
        inner = max(1, together // 4)
        self.mix = nn.Sequential(
            _block(together, inner), _block(inner, inner), nn.Conv2d(inner, together, 1)
        )
        self.reduce = _block(together, channels)
        self.excite = nn.ModuleDict({key: Excitation(channels) for key in self._keys.values()})

    def forward(self, maps: Mapping[str, Tensor], receivers: Sequence[str]) -> dict[str, Tensor]:
        """Compute what the receivers get.

        Args:
            maps: of every task, (B, channels, H, W).
            receivers: names of tasks.

        Returns:
            Receiver -> (B, channels, H, W).
        """
        whole = torch.cat([maps[task] for task in self._keys], dim=1)
        batch, together, height, width = whole.shape
        by_task = (batch, len(self._keys), together // len(self._keys), height, width)
        mask = self.mix(whole).reshape(by_task).softmax(dim=1)
        shared = self.reduce((mask * whole.reshape(by_task)).flatten(1, 2))
        return {task: self.excite[self._keys[task]](shared) + maps[task] for task in receivers}


@final
class Excitation(nn.Module):
    """Squeeze-and-excitation (Hu, Shen and Sun, CVPR 2018): channels weighed by their means.

    If the image was padded, the means include the padding.

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // REDUCTION)
        self.weigh = nn.Sequential(
            nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels), nn.Sigmoid()
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Compute (B, channels, H, W) -> the same shape."""
        weights: Tensor = self.weigh(maps.mean((2, 3)))
        return maps * weights[:, :, None, None]


def _block(channels: int, outputs: int) -> BasicBlock:
    return BasicBlock(channels, outputs, 1, 1, 1)
