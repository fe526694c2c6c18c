"""What both networks are made of: weights of maps, at first mostly those of one's own."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["along_channels", "shares"]


def shares(number: int, place: int, own: float) -> Tensor:
    """Return (number,) weights that add up to 1: `own` at a place, all others alike.

    Of one alone the weight is 1.
    """
    others = (1 - own) / max(1, number - 1)
    weights = torch.full((number,), others)
    weights[place] = own if number > 1 else 1.0
    return weights


def along_channels(layout: str) -> list[int]:
    """Return the shape that (C,) must have to multiply a map of this layout, channel by channel."""
    return [-1 if axis == "C" else 1 for axis in layout]
