"""Layers of experts and towers, on vectors or on maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

# Standard deviation of a standard normal that is cut off at 2.
_OF_TRUNCATED = 0.87962566103423978


def layers(inputs: int, widths: Sequence[int], *, maps: bool) -> nn.Sequential:
    """Return layers with ReLU: linear ones of vectors, 3x3 convolutions with batch norm of maps.

    Args:
        inputs: number of values or channels that the first one reads.
        widths: what each layer gives; none of them: the input as it is.
        maps: whether they read maps (B, C, H, W), whose size they keep, or vectors (B, C).
    """
    parts: list[nn.Module] = []
    for before, after in pairwise((inputs, *widths)):
        if maps:
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            parts += [convolution, nn.BatchNorm2d(after)]
        else:
            parts.append(nn.Linear(before, after))
        parts.append(nn.ReLU(inplace=True))
    made = nn.Sequential(*parts)
    initialise(made)
    return made


def initialise(module: nn.Module) -> None:
    """Draw the weights of all linear layers and convolutions in `module` anew; biases are 0.

    Normal, cut off at two deviations, with the variance 1 / (inputs of a value), which is what
    Keras calls variance scaling. Draws from torch's global generator.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            deviation = 1 / math.sqrt(part.weight[0].numel()) / _OF_TRUNCATED
            nn.init.trunc_normal_(part.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
