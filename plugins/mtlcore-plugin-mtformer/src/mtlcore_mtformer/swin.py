"""Blocks of windows, of one task's map and of a task that borrows the attention of the others.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021
(arXiv 2103.14030); and Xu, Zhao, Vineet, Lim and Torralba, "MTFormer: Multi-task Learning via
Transformer and Cross-Task Reasoning", ECCV 2022, with the layers of the authors' code.

Maps are (B, H, W, C), channels last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: A block's own perceptron has so many times more channels inside.
EXPANSION = 4


@final
class Windows:
    """How maps of one size are cut into square windows, and what in a window sees one another.

    Maps are padded to whole windows. Shifted windows lie half a window further down and to the
    right; what leaves the map there comes in again at the other side, and sees nothing from here.
    Nothing sees the padding.

    Args:
        height: of the maps.
        width: of the maps.
        side: of a window, in places.
        shifted: whether windows are shifted.
        device: of the maps.

    Attributes:
        seen: (N, L, L), whether a place of a window attends to another one; N windows of L places.
    """

    def __init__(
        self, height: int, width: int, side: int, *, shifted: bool, device: torch.device
    ) -> None:
        self._height, self._width, self._side = height, width, side
        self._shift = side // 2 if shifted else 0
        self._more = (-height % side, -width % side)
        rows = _parts(height, self._more[0], self._shift, device)[:, None]
        columns = _parts(width, self._more[1], self._shift, device)
        parts = torch.where((rows < 0) | (columns < 0), -1, 2 * rows + columns)
        numbers = self._cut(parts[None, :, :, None])[0, :, :, 0]
        self.seen = numbers[:, :, None] == numbers[:, None, :]

    def cut(self, maps: Tensor) -> Tensor:
        """Cut maps (B, H, W, C) into windows, (B, N, L, C)."""
        padded = F.pad(maps, (0, 0, 0, self._more[1], 0, self._more[0]))
        if self._shift:
            padded = padded.roll((-self._shift, -self._shift), (1, 2))
        return self._cut(padded)

    def join(self, windows: Tensor) -> Tensor:
        """Make maps (B, H, W, C) of windows (B, N, L, C)."""
        side = self._side
        height, width = self._height + self._more[0], self._width + self._more[1]
        tiles = windows.reshape(
            windows.shape[0], height // side, width // side, side, side, windows.shape[-1]
        )
        maps = tiles.transpose(2, 3).reshape(windows.shape[0], height, width, windows.shape[-1])
        if self._shift:
            maps = maps.roll((self._shift, self._shift), (1, 2))
        return maps[:, : self._height, : self._width]

    def _cut(self, maps: Tensor) -> Tensor:
        """Cut maps of whole windows."""
        side = self._side
        height, width = self._height + self._more[0], self._width + self._more[1]
        tiles = maps.reshape(
            maps.shape[0], height // side, side, width // side, side, maps.shape[-1]
        )
        return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


@final
class WindowAttention(nn.Module):
    """Attention within windows, by the queries and keys of some maps to the values of one.

    Scores have an offset for every distance of two places in a window.

    Args:
        channels: of the maps, a multiple of `heads`.
        heads: of the attention.
        side: of a window.
        sources: number of maps whose scores are computed. Scores are divided by the root of the
            channels that all of them have in a head together, as in the authors' code.
    """

    distances: Tensor

    def __init__(self, channels: int, heads: int, side: int, sources: int) -> None:
        super().__init__()
        self._heads, self._scale = heads, (sources * channels // heads) ** -0.5
        self.query_key = nn.Linear(channels, 2 * channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.offsets = nn.Parameter(torch.empty((2 * side - 1) ** 2, heads))
        nn.init.trunc_normal_(self.offsets, std=0.02)
        places = torch.arange(side)
        distances = places[:, None] - places + side - 1
        down = distances[:, None, :, None].expand(side, side, side, side)
        across = distances[None, :, None, :].expand(side, side, side, side)
        numbers = ((2 * side - 1) * down + across).reshape(side**2, side**2)
        self.register_buffer("distances", numbers, persistent=False)

    def forward(self, sources: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Compute what every place receives by the scores of every source.

        Args:
            sources: (S, B, N, L, C), whose queries and keys are used.
            values: (B, N, L, C), what is received.
            seen: (N, L, L), see `Windows`.

        Returns:
            (S, B, N, L, C).
        """
        queries, keys = self.query_key(sources).chunk(2, dim=-1)
        scores = self._apart(queries) @ self._apart(keys).mT * self._scale
        scores = scores + self.offsets[self.distances].permute(2, 0, 1)
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
        received = scores.softmax(dim=-1) @ self._apart(self.value(values))
        found: Tensor = self.output(received.transpose(-3, -2).flatten(-2))
        return found

    def _apart(self, maps: Tensor) -> Tensor:
        """Split (..., L, C) into heads, (..., heads, L, C / heads)."""
        size = maps.shape[-1] // self._heads
        return maps.reshape(*maps.shape[:-1], self._heads, size).transpose(-3, -2)


@final
class SwinBlock(nn.Module):
    """Attention within windows and a perceptron, each of normalised maps and added to them.

    Args:
        channels: of the map, a multiple of `heads`.
        heads: of the attention.
        side: of a window.
    """

    def __init__(self, channels: int, heads: int, side: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, side, 1)
        self.norm_perceptron = nn.LayerNorm(channels)
        self.perceptron = perceptron(channels, EXPANSION * channels, channels)

    def forward(self, maps: Tensor, windows: Windows) -> Tensor:
        """Compute (B, H, W, C) -> the same shape."""
        cut = windows.cut(self.norm_attention(maps))
        maps = maps + windows.join(self.attention(cut[None], cut, windows.seen)[0])
        found: Tensor = maps + self.perceptron(self.norm_perceptron(maps))
        return found


@final
class CrossTaskBlock(nn.Module):
    """A block of one task, in which its values are attended to by the scores of all tasks.

    Queries and keys of all tasks are computed by the same layer. What the values become by the
    task's own scores and by those of each other task passes a perceptron for each, and then one of
    all of them side by side; what they become by its own scores is added to that.

    Args:
        channels: of the maps, a multiple of `heads`.
        heads: of the attention.
        side: of a window.
        tasks: number of tasks.
    """

    def __init__(self, channels: int, heads: int, side: int, tasks: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, side, tasks)
        inner, others = tasks * channels, tasks - 1
        widths = [channels, *[max(1, channels // others) for _ in range(others)]]
        self.parts = nn.ModuleList(perceptron(channels, inner, width) for width in widths)
        self.merge = perceptron(sum(widths), inner, channels)
        self.norm_perceptron = nn.LayerNorm(channels)
        self.perceptron = perceptron(channels, EXPANSION * channels, channels)

    def forward(self, maps: Tensor, others: Tensor, windows: Windows) -> Tensor:
        """Compute the task's map.

        Args:
            maps: of the task, (B, H, W, C).
            others: of the other tasks, (T - 1, B, H, W, C).
            windows: how they are cut.

        Returns:
            (B, H, W, C).
        """
        together = self.norm_attention(torch.cat([maps[None], others]))
        cut = windows.cut(together.flatten(0, 1))
        cut = cut.reshape(*together.shape[:2], *cut.shape[1:])
        received = self.attention(cut, cut[0], windows.seen)
        parts = [part(x) for part, x in zip(self.parts, received, strict=True)]
        merged = self.merge(torch.cat(parts, dim=-1)) + received[0]
        maps = maps + windows.join(merged)
        found: Tensor = maps + self.perceptron(self.norm_perceptron(maps))
        return found


@final
class SwinPair(nn.Module):
    """A block of windows, one of shifted windows, and a norm.

    Args:
        channels: of the map, a multiple of `heads`.
        heads: of the attention.
        side: of a window.
    """

    def __init__(self, channels: int, heads: int, side: int) -> None:
        super().__init__()
        self.pair = nn.ModuleList(SwinBlock(channels, heads, side) for _ in range(2))
        self.norm = nn.LayerNorm(channels)
        initialise(self)

    def forward(self, maps: Tensor, windows: Sequence[Windows]) -> Tensor:
        """Compute (B, H, W, C) -> the same shape; `windows` are those of the two blocks."""
        for block, cutting in zip(self.pair, windows, strict=True):
            maps = block(maps, cutting)
        found: Tensor = self.norm(maps)
        return found


@final
class CrossTaskPair(nn.Module):
    """A block of one task with the scores of all, one with shifted windows, and a norm.

    The maps of the other tasks are the same in both blocks.

    Args:
        channels: of the maps, a multiple of `heads`.
        heads: of the attention.
        side: of a window.
        tasks: number of tasks.
    """

    def __init__(self, channels: int, heads: int, side: int, tasks: int) -> None:
        super().__init__()
        self.pair = nn.ModuleList(CrossTaskBlock(channels, heads, side, tasks) for _ in range(2))
        self.norm = nn.LayerNorm(channels)
        initialise(self)

    def forward(self, maps: Tensor, others: Tensor, windows: Sequence[Windows]) -> Tensor:
        """Compute the task's map, as `CrossTaskBlock.forward`; `windows` are of the two blocks."""
        for block, cutting in zip(self.pair, windows, strict=True):
            maps = block(maps, others, cutting)
        found: Tensor = self.norm(maps)
        return found


def perceptron(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    """Return two linear layers with GELU between them."""
    return nn.Sequential(nn.Linear(inputs, inner), nn.GELU(), nn.Linear(inner, outputs))


def initialise(module: nn.Module) -> None:
    """Draw the weights of linear layers as Swin does: normal, cut off at 2; biases are 0."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    for weight, bias in ((layer.weight, layer.bias) for layer in layers):
        nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(bias)


def _parts(length: int, more: int, shift: int, device: torch.device) -> Tensor:
    """Return, for every row or column, 0, or 1 where it came in again, or -1 where it is padding.

    Args:
        length: number of rows.
        more: number of those that are padded at the end.
        shift: of the windows.
        device: of the answer.
    """
    shifted = torch.arange(length + more, device=device) + shift
    again = shifted >= length + more
    return torch.where(shifted - again * (length + more) >= length, -1, again.long())
