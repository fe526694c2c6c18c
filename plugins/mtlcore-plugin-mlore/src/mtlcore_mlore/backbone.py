"""MLoRE: at every level of an encoder, tasks pick among low-rank experts that all of them share.

Yang, Jiang, Hou, Zhang, Chen and Li, "Multi-Task Dense Prediction via Mixture of Low-Rank Experts",
CVPR 2024 (arXiv 2403.17749), with the layers of the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, WrappingBackbone, shared_maps
from mtlcore.ranges import Channels, Count, Length, Nested, NonNegative, Size
from mtlcore.tasks import Task
from mtlcore_mlore.experts import Mixture

#: How much finer the map is that a head reads than those of the mixtures.
GROWTH = 4


@final
class MLoRE(WrappingBackbone):
    """Mixture of low-rank experts over the maps of any encoder that gives several.

    Every map of the encoder is a level, projected to `channels`. At each level a task's map passes
    two mixtures of experts (`Mixture`): those that all tasks share, of which a router picks some
    for every image, one of the task's own, and a convolution that all tasks share. The levels are
    weighed by a softmax over them at every place and added up; the sum is enlarged four times and
    passes a 3x3 convolution. That is the map of the task's own that its head reads. With the head
    `pointwise` it is the published network.

    A term, `load_balancing`, is added to the loss in training: the sum over all mixtures of the
    squared coefficient of variation of the experts' mean weights.

    All levels have one resolution. It is that of the encoder's maps where these have one stride, as
    those of a plain transformer's blocks; otherwise four times the finest stride.

    Args:
        tasks: of the run.
        backbone: the encoder, any backbone with two maps or more that all tasks share, with its
            settings, such as {name = "timm", model = "vit_base_patch16_384", pyramid = "none",
            out_indices = [2, 5, 8, 11]}.
        channels: of every level and of every task's map, a multiple of four.
        ranks: of the experts that all tasks share, at least two.
        chosen: number of experts that count for an image.
        task_rank: of each task's own expert.
        renormalise: whether the weights of those that count add up to one; otherwise they are what
            a softmax over all gives them.
        load_balancing: factor of the term.
        grid: height and width of the grid, over an image, of whose places a router has a weight
            each. Maps of other sizes are averaged to it.

    Raises:
        UsageError: channels that are no multiple of four, more experts chosen than there are, or an
            encoder that has not the maps.
    """

    reads_through = "backbone"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: Annotated[Callable[[Sequence[Task]], Backbone], Nested("backbones")],
        channels: Channels = 640,
        ranks: Annotated[tuple[Channels, ...], Length(ge=2, le=1000)] = tuple(range(16, 129, 8)),
        chosen: Count = 9,
        task_rank: Channels = 64,
        renormalise: bool = False,
        load_balancing: NonNegative = 1e-4,
        grid: Size = (32, 32),
    ) -> None:
        super().__init__()
        if channels % 4:
            raise UsageError(
                f"model.backbone.channels: {channels} must be a multiple of 4, as routers have a "
                "quarter of them inside"
            )
        if chosen > len(ranks):
            raise UsageError(
                f"model.backbone.chosen: {chosen} experts cannot be chosen of the {len(ranks)} "
                "that model.backbone.ranks has"
            )
        self.encoder = backbone(tasks)
        self.input_kind = self.encoder.input_kind
        info = FeatureInfo.of(self.encoder)
        self._places = info.pyramid
        strides = [info.strides[place] for place in self._places]
        if self.input_kind != "image" or len(strides) < 2:
            raise UsageError(
                f"model.backbone.backbone: {type(self.encoder).__name__} gives {len(strides)} "
                "maps, and MLoRE weighs those of two levels or more; let it give a pyramid "
                "(resnet: model.backbone.backbone.pyramid=true) or the maps of several blocks "
                "(timm: model.backbone.backbone.out_indices), or choose another encoder"
            )
        self._stride = strides[0] if len(set(strides)) == 1 else GROWTH * strides[-1]
        if self._stride % GROWTH:
            raise UsageError(
                f"model.backbone.backbone: maps have the stride {self._stride}, and heads read "
                f"maps {GROWTH} times finer; choose an encoder with which it is a multiple of "
                f"{GROWTH}"
            )
        self.input_multiple = math.lcm(self.encoder.input_multiple, self._stride)
        self.out_channels, self.strides = (channels,), (self._stride // GROWTH,)
        self._load_balancing = load_balancing
        self._keys = {task.name: task.key for task in tasks}
        keys = tuple(self._keys.values())
        self.project = nn.ModuleList(
            nn.Conv2d(info.channels[place], channels, 1) for place in self._places
        )
        self.mixtures = nn.ModuleList(
            nn.ModuleList(
                Mixture(
                    keys, channels, ranks, chosen, task_rank, renormalise=renormalise, grid=grid
                )
                for _ in range(2)
            )
            for _ in self._places
        )
        levels = len(self._places)
        self.weigh = nn.ModuleDict({key: _weighing(channels, levels) for key in keys})
        self.output = nn.ModuleDict({key: _output(channels) for key in keys})

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of `input_multiple`.

        There is no cut: the experts that tasks share are behind what is the task's own.

        Raises:
            UsageError: the encoder gives tasks maps of their own.
        """
        found: Features = self.encoder(inputs, tasks)
        shared = shared_maps("model.backbone.backbone", self.encoder, found)
        size = (inputs.shape[2] // self._stride, inputs.shape[3] // self._stride)
        levels = [
            project(_resized(shared[place], size))
            for project, place in zip(self.project, self._places, strict=True)
        ]
        own, picked = {}, []
        for task in tasks:
            key, maps = self._keys[task], []
            for level, mixtures in zip(levels, self.mixtures, strict=True):
                here, weights = level, []
                assert isinstance(mixtures, nn.ModuleList)
                for mixture in mixtures:
                    here, weight = mixture(here, key)
                    weights.append(weight)
                maps.append(here)
                picked.append(torch.stack(weights))
            shares = self.weigh[key](torch.cat(maps, dim=1)).softmax(dim=1)
            total = (torch.stack(maps, dim=1) * shares[:, :, None]).sum(1)
            finer = F.interpolate(total, scale_factor=GROWTH, mode="bilinear", align_corners=False)
            own[task] = (self.output[key](finer),)
        if not self.training:
            return Features(per_task=own)
        if not tasks:  # a batch without labels: nobody picked an expert
            return Features(terms=found.terms)
        # (tasks, levels, 2, B, experts) -> the mean of each expert in each mixture.
        stacked = torch.stack(picked)
        means = stacked.view(len(tasks), len(levels), *stacked.shape[1:]).mean((0, 3))
        variation = (means.std(-1) / means.mean(-1)).square().sum()
        terms = {**found.terms, "load_balancing": self._load_balancing * variation}
        return Features(per_task=own, early=found.early, terms=terms)

    def wrapped(self) -> Sequence[Backbone]:
        """Return the encoder."""
        return (self.encoder,)

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return what only the task's loss reaches.

        That is its part of the encoder and of every mixture, and what weighs its levels. A lone
        task has everything that is not the encoder's.
        """
        own = [self.encoder.task_parameters(task)]
        if len(self._keys) == 1:
            inside = {id(p) for p in self.encoder.parameters()}
            return chain(*own, (p for p in self.parameters() if id(p) not in inside))
        key = self._keys[task]
        own += [self.weigh[key].parameters(), self.output[key].parameters()]
        own += [mixture.tasks[key].parameters() for mixture in self._all_mixtures()]
        return chain.from_iterable(own)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last shared layers of every level's second mixture.

        A lone task shares nothing; then they are those of the encoder.
        """
        if len(self._keys) == 1:
            return self.encoder.last_shared_parameters()
        return chain.from_iterable(
            mixture.last_parameters() for mixture in self._all_mixtures()[1::2]
        )

    def _all_mixtures(self) -> list[Mixture]:
        return [m for m in self.mixtures.modules() if isinstance(m, Mixture)]


def _weighing(channels: int, levels: int) -> nn.Sequential:
    """Return what computes scores of the levels at every place, of the levels side by side."""
    return nn.Sequential(
        nn.Conv2d(levels * channels, channels, 1),
        nn.BatchNorm2d(channels),
        nn.GELU(),
        nn.Conv2d(channels, levels, 3, padding=1),
    )


def _output(channels: int) -> nn.Sequential:
    """Return the convolution that the published head begins with, initialised as there."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    nn.init.trunc_normal_(convolution.weight, std=0.02)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.GELU())


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge a map bilinearly, or reduce it to the means of squares."""
    if maps.shape[2] > size[0]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
