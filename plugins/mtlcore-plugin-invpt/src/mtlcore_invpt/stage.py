"""A stage of InvPT's decoder: the maps of all tasks grow, and attend to those of one another.

Ye and Xu, "Inverted Pyramid Multi-task Transformer for Dense Scene Understanding", ECCV 2022
(arXiv 2203.07997): the UP-Transformer block, with the layers of the authors' code.

Maps of all tasks are one tensor (B, T, H, W, C), tasks in their order and channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Of every stage.
HEADS = 2
#: Queries have half the resolution of their maps.
QUERY_STRIDE = 2
#: A perceptron has so many times more channels inside.
EXPANSION = 4


@final
class CrossTaskAttention(nn.Module):
    """Every place of every task attends to all places of all tasks, at lower resolutions.

    Queries are computed by a 3x3 convolution per channel and task, of stride 2; keys and values are
    means of the maps. Scores are divided by the root of all channels, as in the authors' code, and
    not of those of a head. From the second stage on they are mixed with those of the stage before,
    whose queries are enlarged: the paper's attention message passing.

    Args:
        keys: of the tasks.
        channels: of the maps, a multiple of the number of heads.
        pooling: side of the squares whose means keys and values are made of.
        listens: whether the scores of another stage come in.
    """

    def __init__(self, keys: Sequence[str], channels: int, pooling: int, *, listens: bool) -> None:
        super().__init__()
        self._pooling, self._scale = pooling, channels**-0.5
        self.reduce = nn.ModuleDict({key: _halved(channels) for key in keys})
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.mix = nn.Conv2d(2 * HEADS, HEADS, 1) if listens else None
        self.output = nn.Linear(channels, channels)

    def forward(self, maps: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute what every place receives.

        Args:
            maps: (B, T, H, W, C).
            before: scores of the stage before, or None in the first.

        Returns:
            (B, T, ceil(H / 2), ceil(W / 2), C), and the scores
            (B, heads, T, ceil(H / 2), ceil(W / 2), keys).
        """
        images = maps.permute(1, 0, 4, 2, 3)
        halved = [reduce(x) for reduce, x in zip(self.reduce.values(), images, strict=True)]
        queries = self.query(torch.stack(halved, dim=1).movedim(2, -1))
        pooled = F.avg_pool2d(images.flatten(0, 1), self._pooling, ceil_mode=True)
        memory = pooled.view(*images.shape[:2], *pooled.shape[1:]).permute(1, 0, 3, 4, 2)
        grid = queries.shape[1:4]
        scores = _heads(queries) @ _heads(self.key(memory)).mT * self._scale
        if self.mix is not None:
            assert before is not None
            scores = self.mix(torch.cat([scores, _enlarged(before, grid[1:])], dim=1))
        received = scores.softmax(dim=-1) @ _heads(self.value(memory))
        joined = received.transpose(1, 2).flatten(2).unflatten(1, grid)
        return self.output(joined), scores.unflatten(2, grid)


@final
class Stage(nn.Module):
    """A stage: growing, attention between all places of all tasks, and a perceptron.

    Args:
        keys: of the tasks.
        inputs: channels of the maps that come in.
        channels: of the maps that go out.
        pooling: see `CrossTaskAttention`.
        grows: whether maps are doubled in height and width first, by two dilated convolutions per
            task, and the encoder's map is added; and scores of the stage before come in.
    """

    def __init__(
        self, keys: Sequence[str], inputs: int, channels: int, pooling: int, *, grows: bool
    ) -> None:
        super().__init__()
        self.grow = (
            nn.ModuleDict({key: _growing(inputs, channels) for key in keys}) if grows else None
        )
        self.norm_attention = nn.LayerNorm(channels)
        self.attention = CrossTaskAttention(keys, channels, pooling, listens=grows)
        self.norm_perceptron = nn.LayerNorm(channels)
        inner = EXPANSION * channels
        self.perceptron = nn.Sequential(
            nn.Linear(channels, inner), nn.GELU(), nn.Linear(inner, channels)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self, maps: Tensor, encoded: Tensor | None, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute the maps of all tasks.

        Args:
            maps: (B, T, h, w, inputs).
            encoded: what is added of the encoder once the maps have grown, (B, channels, H, W);
                None where they do not.
            before: scores of the stage before, or None in the first.

        Returns:
            (B, T, H, W, channels), H = h or, where they grow, 2 h; and the stage's scores.
        """
        if self.grow is not None:
            images = maps.permute(1, 0, 4, 2, 3)
            grown = [grow(x) + encoded for grow, x in zip(self.grow.values(), images, strict=True)]
            maps = torch.stack(grown, dim=1).movedim(2, -1)
        received, scores = self.attention(self.norm_attention(maps), before)
        maps = maps + _resized(received, maps.shape[2:4])
        maps = maps + self.perceptron(self.norm_perceptron(maps))
        return maps, scores


def _halved(channels: int) -> nn.Sequential:
    """Return a convolution of every channel by itself that halves height and width."""
    convolution = nn.Conv2d(
        channels, channels, 3, stride=QUERY_STRIDE, padding=1, groups=channels, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


def _growing(inputs: int, channels: int) -> nn.Sequential:
    """Return what doubles height and width, and convolves twice."""
    layers: list[nn.Module] = [nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)]
    for width in (inputs, channels):
        layers += [
            nn.Conv2d(width, channels, 3, padding=2, dilation=2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def _heads(maps: Tensor) -> Tensor:
    """Split (B, T, h, w, C) into the tokens of every head, (B, heads, T h w, C / heads)."""
    batch, tasks, height, width, channels = maps.shape
    tokens = maps.reshape(batch, tasks * height * width, HEADS, channels // HEADS)
    return tokens.transpose(1, 2)


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, T, h, w, C) bilinearly to the height and width `size`."""
    images = maps.movedim(-1, 2)
    found = F.interpolate(images.flatten(0, 1), tuple(size), mode="bilinear", align_corners=False)
    return found.view(*images.shape[:2], *found.shape[1:]).movedim(2, -1)


def _enlarged(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Resize the queries of scores (B, heads, T, h, w, K); return (B, heads, T H W, K)."""
    found = _resized(scores.flatten(1, 2), size)
    return found.reshape(*scores.shape[:2], -1, scores.shape[-1])
