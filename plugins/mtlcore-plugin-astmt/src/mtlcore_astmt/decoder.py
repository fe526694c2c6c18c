"""DeepLabV3+'s decoder, its convolutions shared, and what follows each of them a task's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.models import ParallelAdapters
from mtlcore.tasks import Task
from mtlcore_astmt.layers import unit

# Dilations at an output stride of 16; at 8 they are doubled.
_RATES = (6, 12, 18)
# Channels of the fine map that join those of the deep one, of 256 of the latter.
_FINE = 48
# The reduction of the squeeze and excitation on the few channels of the fine map.
_FINE_REDUCTION = 4


@final
class Decoder(nn.Module):
    """Chen et al., ECCV 2018 (arXiv 1802.02611): pyramid pooling by dilation, then a finer map.

    The deep map goes through a 1x1 convolution, three dilated 3x3 ones and a 1x1 convolution of its
    mean; what a 1x1 convolution makes of these, enlarged bilinearly, joins 3/16 as many channels of
    the fine map and goes through two 3x3 convolutions. Convolutions are shared; batch norms,
    squeeze and excitation, and adapters, which all but that of the mean have, are a task's own.

    Args:
        tasks: of the run.
        deep: channels and stride of the deep map.
        fine: channels of the fine map.
        channels: of its own map, which is as large as the fine one.
        reduction: of the squeeze and excitation.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        deep: tuple[int, int],
        fine: int,
        channels: int,
        reduction: int,
    ) -> None:
        super().__init__()
        inputs, stride = deep
        narrow = max(1, _FINE * channels // 256)
        rates = [max(1, rate * 16 // stride) for rate in _RATES]
        branches = [_pointwise(inputs, channels)]
        branches += [
            nn.Conv2d(inputs, channels, 3, padding=rate, dilation=rate, bias=False)
            for rate in rates
        ]
        self.branches = nn.ModuleList(unit(tasks, each, reduction) for each in branches)
        self.mean = unit(tasks, _pointwise(inputs, channels), reduction, adapters=False)
        self.join = unit(tasks, _pointwise(5 * channels, channels), reduction)
        self.fine = unit(tasks, _pointwise(fine, narrow), _FINE_REDUCTION)
        both = nn.Conv2d(channels + narrow, channels, 3, padding=1, bias=False)
        self.both = unit(tasks, both, reduction)
        self.last = unit(tasks, nn.Conv2d(channels, channels, 3, padding=1, bias=False), reduction)

    def forward(self, deep: Tensor, fine: Tensor) -> Tensor:
        """Compute (B, C, H, W), (B, C', H', W') -> (B, channels, H', W')."""
        mean = self.mean(deep.mean((2, 3), keepdim=True)).expand(-1, -1, *deep.shape[2:])
        pooled = self.join(torch.cat([*(branch(deep) for branch in self.branches), mean], 1))
        fine = self.fine(fine)
        pooled = F.interpolate(pooled, fine.shape[2:], mode="bilinear", align_corners=False)
        decoded: Tensor = self.last(self.both(torch.cat([pooled, fine], 1)))
        return decoded

    def last_parameters(self) -> Iterator[Parameter]:
        """Return the weights of the last convolution, which all tasks share."""
        adapted = self.last[0]
        assert isinstance(adapted, ParallelAdapters)
        return adapted.shared.parameters()


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)
