"""NDDR-CNN: a network per task, whose maps are put side by side and reduced after each stage.

Gao, Ma, Zhao, Liu and Yuille, "NDDR-CNN: Layerwise Feature Fusing in Multi-Task CNNs by Neural
Discriminative Dimensionality Reduction", CVPR 2019 (arXiv 1801.08297).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.models import BackbonePerTask, ExchangingBackbone, Places, as_it_was, as_map
from mtlcore.ranges import Fraction, Positive
from mtlcore.tasks import Task

__all__ = ["NDDR"]

# Those of the released code's batch norm.
_EPS, _MOMENTUM = 1e-3, 0.05


@final
class Reduction(nn.Module):
    """A 1x1 convolution, batch norm and an activation: many channels become few.

    Args:
        channels: of its input, (B, channels, H, W).
        outputs: channels of its output.
        activation: "relu" or "none".
    """

    def __init__(self, channels: int, outputs: int, activation: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=_EPS, momentum=_MOMENTUM)
        self._rectified = activation == "relu"

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, outputs, H, W)."""
        reduced: Tensor = self.norm(self.reduce(x))
        return F.relu(reduced) if self._rectified else reduced


def fusion(tasks: int, place: int, channels: int, own: float, activation: str) -> Reduction:
    """Return the layer that fuses the maps of all tasks for one of them.

    Its convolution begins as a weighted sum of the maps: a diagonal matrix per task.

    Args:
        tasks: how many there are.
        place: of the task that it is for.
        channels: of each task's map.
        own: weight of this task's map at first; the others have equal parts of the rest of 1.
        activation: "relu" or "none".
    """
    layer = Reduction(tasks * channels, channels, activation)
    rest = (1 - own) / max(1, tasks - 1)
    weights = torch.full((tasks,), rest)
    weights[place] = own if tasks > 1 else 1.0
    with torch.no_grad():
        layer.reduce.weight[:, :, 0, 0] = torch.cat([w * torch.eye(channels) for w in weights], 1)
    return layer


@final
class NDDR(ExchangingBackbone):
    """NDDR-CNN: one network per task, fused after each stage by a layer per task.

    After stage l the network of task i goes on with

        x_i <- relu(BN_i(W_i [x_1, ..., x_K]))

    where [...] puts the maps of all tasks side by side and W_i is a 1x1 convolution without bias.
    W_i begins as `own` times the task's map plus equal parts of the rest of 1 of the others, the
    paper's (0.9, 0.1) for two tasks. With `shortcut`, what the head of task i reads is what one
    more such layer makes of all its fused maps, brought to the size of the last one. Nothing is
    shared, so all parameters before the last fusion are reached by every task's loss. There is no
    cut.

    Args:
        backbone: the network that each task gets one of, with its settings, such as {name = "unet",
            width = 0.125, decoder = "shared"}. It must say where maps can be exchanged.
        exchange_at: numbers of the stages after which maps are fused, from 0 at the input; negative
            ones count from the end. Unset: after each, those of a decoder included.
        own: weight of a task's own map at first.
        shortcut: whether heads read a reduction of the fused maps of all stages, in the place of
            the map that a head of a single one reads.
        activation: after batch norm: "relu", as published, or "none", for networks whose maps are
            no outputs of ReLU, such as transformers.
        layer_rate: learning rate of these layers divided by that of the networks. The paper has 100
            for SGD; under Adam, which moves every number by about the rate, it is best near 1.

    Raises:
        UsageError: the backbone names no such stages, or the shortcut would join tokens.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: BackbonePerTask,
        exchange_at: Places = None,
        own: Fraction = 0.9,
        shortcut: bool = False,
        activation: Literal["relu", "none"] = "relu",
        layer_rate: Positive = 100.0,
    ) -> None:
        super().__init__(tasks, backbone, exchange_at)
        self.layer_rate = layer_rate
        self._layouts = [point.layout for point in self.points]
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    task.key: fusion(len(tasks), place, point.channels, own, activation)
                    for place, task in enumerate(tasks)
                }
            )
            for point in self.points
        )
        if shortcut and "NLC" in self._layouts[:-1]:
            raise UsageError(
                "model.backbone.shortcut: tokens of a transformer cannot be put beside maps; set "
                "it to false"
            )
        last = self.out_channels[self.main_map]
        channels = sum(point.channels for point in self.points[:-1]) + last
        self.shortcuts = nn.ModuleDict(
            {task.key: _shortcut(channels, last, activation) for task in tasks} if shortcut else {}
        )

    def exchange(
        self, number: int, maps: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """Fuse the maps of all tasks, for each task that goes on."""
        layout = self._layouts[number]
        beside = torch.cat([as_map(x, layout) for x in maps.values()], 1)
        return {task: as_it_was(self._layer(number, task)(beside), layout) for task in wanted}

    def exchange_parameters(self, number: int, task: str) -> Iterable[Parameter]:
        """Return the parameters of a task's layer."""
        return self._layer(number, task).parameters()

    def finish(
        self, task: str, maps: tuple[Tensor, ...], exchanged: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Put the reduction of all stages in the place of the map that heads of one map read."""
        if not self.shortcuts:
            return maps
        main = maps[self.main_map]
        last = as_map(main, "NC") if main.dim() == 2 else main
        beside = []
        for x, layout in zip(exchanged[:-1], self._layouts[:-1], strict=True):
            found = as_map(x, layout)
            if found.shape[2:] != last.shape[2:]:
                found = F.interpolate(found, last.shape[2:], mode="bilinear", align_corners=False)
            beside.append(found)
        reduced = self.shortcuts[self._keys[task]](torch.cat([*beside, last], 1))
        place = self.main_map % len(maps)
        return (*maps[:place], reduced.reshape(main.shape), *maps[place + 1 :])

    def finish_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's shortcut."""
        return self.shortcuts[self._keys[task]].parameters() if self.shortcuts else ()

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Yield the group of all layers that fuse, which learn at a rate of their own."""
        if self.layer_rate != 1:
            parameters = [*self.layers.parameters(), *self.shortcuts.parameters()]
            yield {"params": parameters, "lr_scale": self.layer_rate}

    def _layer(self, number: int, task: str) -> nn.Module:
        layers = self.layers[number]
        assert isinstance(layers, nn.ModuleDict)
        return layers[self._keys[task]]


def _shortcut(channels: int, outputs: int, activation: str) -> Reduction:
    """Return the layer of a shortcut, initialised as every other one of the released code."""
    layer = Reduction(channels, outputs, activation)
    nn.init.xavier_uniform_(layer.reduce.weight)
    return layer
