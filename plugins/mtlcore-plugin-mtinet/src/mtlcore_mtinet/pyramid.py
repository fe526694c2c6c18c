"""A feature pyramid network, for encoders whose finer maps have seen little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn


@final
class FeaturePyramid(nn.Module):
    """Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017 (arXiv 1612.03144).

    A 1x1 convolution per map, added from the deepest on to the next finer one (nearest neighbours),
    then a 3x3 convolution each.

    Args:
        inputs: channels of the maps, the deepest first.
        channels: of every map of the pyramid.
    """

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in inputs)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute maps of the same sizes, the deepest first."""
        found: list[Tensor] = []
        above: Tensor | None = None
        for here, lateral, output in zip(maps, self.lateral, self.output, strict=True):
            joined = lateral(here)
            if above is not None:
                joined = joined + F.interpolate(above, joined.shape[2:], mode="nearest")
            above = joined
            found.append(output(joined))
        return tuple(found)
