"""The network that maps predictions and labels of any task into the joint space of a task pair.

Li, Liu and Bilen, "Learning Multiple Dense Prediction Tasks from Partially Annotated Data", CVPR
2022 (arXiv 2111.14893), section 3.2: a convolution per task, then one encoder for all, SegNet's or
ResNet-18's, each of whose batch norms is followed by a modulation (FiLM) that depends on the pair.

The released code runs it for one map at a time, so that batch norm normalises each map by itself.
Here all maps of a step go through it together, and every map is still normalised by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.standard.losses import unit_vectors
from mtlcore.standard.resnet import CHANNELS
from mtlcore.standard.segnet import FILTERS, REST, conv, filters_of, scaled
from mtlcore.tasks import Task
from mtlcore_mtpsl.rates import Rates

Code = Literal["same", "different", "none"]
Encoder = Literal["segnet", "resnet-18"]

STRIDE = 32
"""Side of an input divided by the side of its map in the joint space."""

_EPS = 1e-5  # of torch's batch norm


@attrs.frozen
class Use:
    """One map to be brought into the joint space of a pair.

    Args:
        task: name of the task that the map is of.
        index: of the map among those of its task.
        pair: names of source and target.
        role: whether the map is the source's (0) or the target's (1).
    """

    task: str
    index: int
    pair: tuple[str, str]
    role: int


class FiLM(nn.Module):
    """Scale and shift of every channel as linear functions, without bias, of a one-hot code.

    Args:
        channels: that are modulated.
        codes: number of codes; the functions are matrices of channels x codes, ones and zeros.
    """

    def __init__(self, channels: int, codes: int) -> None:
        super().__init__()
        self.gamma = Parameter(torch.ones(channels, codes))
        self.beta = Parameter(torch.zeros(channels, codes))

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and shift, (N, channels) each, for codes (N,)."""
        return self.gamma.t()[codes], self.beta.t()[codes]


class Unit(nn.Module):
    """Convolution, normalisation of each map by itself, FiLM where there are codes, ReLU.

    Args:
        layer: the convolution.
        codes: number of codes; 0: no FiLM.
        rectified: whether there is a ReLU.
    """

    def __init__(self, layer: nn.Conv2d, codes: int, rectified: bool = True) -> None:
        super().__init__()
        self.conv, self._rectified = layer, rectified
        outputs = layer.out_channels
        self.weight = Parameter(torch.ones(outputs))
        self.bias = Parameter(torch.zeros(outputs))
        self.film = FiLM(outputs, codes) if codes else None

    def forward(
        self, maps: Tensor, codes: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Compute (M, channels, H, W) -> (N, outputs, H', W').

        Args:
            maps: the input.
            codes: (N,), of each output.
            rows: (N,), of which input each output is made; by default N is M.
        """
        maps = self.conv(maps)
        if rows is not None:
            maps = maps[rows]
        number, channels = maps.shape[:2]
        scale, shift = self.weight.expand(number, -1), self.bias.expand(number, -1)
        if self.film is not None and codes is not None:
            gamma, beta = self.film(codes)
            # gamma (w x + b) + beta, with w and b those of the norm.
            scale, shift = gamma * scale, torch.addcmul(beta, gamma, shift)
        # A batch norm with a channel for each channel of each map.
        apart = maps.reshape(1, number * channels, *maps.shape[2:])
        apart = F.batch_norm(
            apart, None, None, scale.reshape(-1), shift.reshape(-1), training=True, eps=_EPS
        )
        maps = apart.view_as(maps)
        return F.relu(maps, inplace=True) if self._rectified else maps


class Block(nn.Module):
    """ResNet's basic block, whose two 3x3 convolutions are modulated and whose shortcut is not.

    Args:
        channels: of its input.
        outputs: of its output.
        stride: of its first convolution.
        codes: number of codes; 0: no FiLM.
    """

    def __init__(self, channels: int, outputs: int, stride: int, codes: int) -> None:
        super().__init__()
        self.first = Unit(_plain(channels, outputs, 3, stride), codes)
        self.second = Unit(_plain(outputs, outputs, 3), codes, rectified=False)
        self.shortcut = None
        if stride != 1 or channels != outputs:
            self.shortcut = Unit(_plain(channels, outputs, 1, stride), 0, rectified=False)

    def forward(
        self, maps: Tensor, codes: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Compute (M, channels, H, W) -> (N, outputs, H', W'), as `Unit` does."""
        past = maps if self.shortcut is None else self.shortcut(maps)
        if rows is not None:
            past = past[rows]
        return F.relu(self.second(self.first(maps, codes, rows), codes) + past, inplace=True)


def _plain(channels: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution of ResNet."""
    layer = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class MappingNetwork(nn.Module):
    """Encoded maps of any task -> maps in the joint space of a pair.

    At width 1 and for the tasks of NYUv2 SegNet's has 14,819,328 parameters.

    Args:
        tasks: by name, in the order in which pairs are numbered.
        channels: of the joint space: those of the backbone map that it is compared with.
        code: what FiLM sees, one of K(K - 1) codes: the pair ("same" for its source and its
            target), or from which task into the space of which other ("different": [s, t] for the
            source's map, [t, s] for the target's), or nothing, as there is no FiLM ("none").
        width: factor on the filters of the encoder; the last convolution gives `channels`.
            None: as many as end in `channels`, but at most the published ones.
        encoder: "segnet", after a 3x3 convolution per task; or "resnet-18", whose first
            convolution (7x7, stride 2) is the task's own.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        channels: int,
        code: Code,
        width: float | None = None,
        encoder: Encoder = "segnet",
    ) -> None:
        super().__init__()
        width = min(channels / FILTERS[-1], 1.0) if width is None else width
        codes = 0 if code == "none" else len(tasks) * (len(tasks) - 1)
        self._tasks, self._code, self._residual = dict(tasks), code, encoder == "resnet-18"
        first = scaled(FILTERS[0], width)
        self.inputs = nn.ModuleDict(
            {
                task.key: Unit(
                    _plain(task.channels, first, 7, 2)
                    if self._residual
                    else conv(task.channels, first),
                    0,
                )
                for task in tasks.values()
            }
        )
        levels = _resnet if self._residual else _segnet
        self.levels = nn.ModuleList(levels(width, channels, codes))

    def code_of(self, use: Use) -> int:
        """Return the index of the code: its place in a K x K table without the diagonal."""
        names = list(self._tasks)
        row, column = (names.index(name) for name in use.pair)
        if self._code == "different" and use.role == 1:
            row, column = column, row
        return row * (len(names) - 1) + column - (column > row)

    def forward(self, encoded: Mapping[str, Tensor], uses: Sequence[Use]) -> Tensor:
        """Map every use of an encoded map to (len(uses), channels, H / 32, W / 32).

        What uses have in common is computed once: the layers before the first FiLM do not see the
        pair.

        Args:
            encoded: per task its maps (M, task.channels, H, W); sides are padded with zeros, below
                and on the right, to multiples of 32 (for ResNet-18 to 32x64 at least).
            uses: what to map; results have their order.
        """
        first: dict[str, int] = {}
        maps: list[Tensor] = []
        for name, batch in encoded.items():
            first[name] = sum(map(len, maps))
            height, width = batch.shape[2:]
            right, below = -width % STRIDE, -height % STRIDE
            if self._residual and width + right == height + below == STRIDE:
                right += STRIDE  # a last map of one pixel could not be normalised by itself
            padded = F.pad(batch, (0, right, 0, below))
            read = self.inputs[self._tasks[name].key](padded)
            maps.append(F.max_pool2d(read, 3, 2, 1) if self._residual else read)
        device = maps[0].device
        rows = torch.tensor([first[use.task] + use.index for use in uses], device=device)
        if self._code == "none":
            return self._encode(torch.cat(maps))[rows]
        codes = torch.tensor([self.code_of(use) for use in uses], device=device)
        return self._encode(torch.cat(maps), codes, rows)

    def film_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of FiLM."""
        for module in self.modules():
            if isinstance(module, FiLM):
                yield from module.parameters()

    def other_parameters(self) -> Iterable[Parameter]:
        """Return all parameters but those of FiLM."""
        film = {id(parameter) for parameter in self.film_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in film)

    def groups(self, rates: Rates, film: Rates) -> list[dict[str, Any]]:
        """Return the groups for an optimizer: all without FiLM, then FiLM where there is one."""
        groups = [rates.group(self.other_parameters()), film.group(self.film_parameters())]
        return [group for group in groups if group["params"]]

    def _encode(
        self, maps: Tensor, codes: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        for level in self.levels:
            assert isinstance(level, nn.ModuleList)
            for unit in level:
                maps = unit(maps, codes, rows)
                rows = None
            if not self._residual:
                maps = F.max_pool2d(maps, 2)
        return maps


def _segnet(width: float, channels: int, codes: int) -> list[nn.ModuleList]:
    """Return the units of each level; the last of all ends in the joint space."""
    filters = filters_of(width)
    outputs = [[f] * (1 + rest) for f, rest in zip(filters, REST, strict=True)]
    outputs[-1][-1] = channels
    before = filters[0]
    levels = []
    for level in outputs:
        pairs = zip([before, *level], level, strict=False)
        levels.append(nn.ModuleList([Unit(conv(a, b), codes) for a, b in pairs]))
        before = level[-1]
    return levels


def _resnet(width: float, channels: int, codes: int) -> list[nn.ModuleList]:
    """Return the two blocks of each stage; the last one ends in the joint space."""
    outputs = [*(scaled(number, width) for number in CHANNELS[:-1]), channels]
    before = scaled(CHANNELS[0], width)
    stages = []
    for number, size in enumerate(outputs):
        first = Block(before, size, 2 if number else 1, codes)
        stages.append(nn.ModuleList([first, Block(size, size, 1, codes)]))
        before = size
    return stages


def joint_feature(features: Features, uses: Sequence[tuple[int, str]], like: Tensor) -> Tensor:
    """Return the backbone's deepest maps, detached and at the size of the joint space.

    Args:
        features: of the batch.
        uses: rows of the batch, each with the task in whose features the map is looked for (it is
            the same for all tasks wherever the backbone shares it).
        like: (N, C, h, w); a map of another size is averaged over the new pixels.
    """
    deepest = torch.stack([features.of(task)[0][row].detach() for row, task in uses])
    height, width = like.shape[2:]
    return F.adaptive_avg_pool2d(deepest.to(like.dtype), (height, width))


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Return `1 - cosine` over channels, averaged over positions: two (N, C, h, w) -> (N,)."""
    return 1 - (unit_vectors(one) * unit_vectors(other)).sum(1).mean((1, 2))
