"""What a task has for itself beside shared layers: attention to channels, adapters, batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from mtlcore.models import LayerPerTask, ParallelAdapters
from mtlcore.tasks import Task


@final
class Squeeze(nn.Module):
    """Squeeze and excitation: channels weighed by what the whole map says.

    Hu, Shen and Sun, CVPR 2018 (arXiv 1709.01507): `x * sigmoid(W2 relu(W1 mean(x)))`.

    Args:
        channels: of the map.
        reduction: channels divided by the values between W1 and W2; one value at least.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        between = max(1, channels // reduction)
        self.squeeze, self.excite = nn.Linear(channels, between), nn.Linear(between, channels)
        for layer in (self.squeeze, self.excite):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of (B, C, H, W)."""
        weights: Tensor = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * weights[:, :, None, None]


def squeezes(tasks: Sequence[Task], channels: int, reduction: int) -> LayerPerTask:
    """Return a squeeze and excitation of each task."""
    return LayerPerTask({task.key: Squeeze(channels, reduction) for task in tasks})


def unit(
    tasks: Sequence[Task], convolution: nn.Conv2d, reduction: int, *, adapters: bool = True
) -> nn.Sequential:
    """Return a layer of the decoder: shared convolution, then batch norm, ReLU and SE of a task.

    Weights are drawn as published: normally with a deviation of .01, and adapters are zero.

    Args:
        tasks: of the run.
        convolution: without bias.
        reduction: of the squeeze and excitation.
        adapters: whether each task has an adapter beside the convolution.
    """
    nn.init.normal_(convolution.weight, std=0.01)
    channels = convolution.out_channels
    shared: nn.Module = convolution
    if adapters:
        shared = ParallelAdapters(tasks, convolution, nn.init.zeros_)
    norms = LayerPerTask({task.key: nn.BatchNorm2d(channels) for task in tasks})
    return nn.Sequential(shared, norms, nn.ReLU(), squeezes(tasks, channels, reduction))
