"""MTFormer: a transformer decoder that tasks share, and attention by the scores of all tasks.

Xu, Zhao, Vineet, Lim and Torralba, "MTFormer: Multi-task Learning via Transformer and Cross-Task
Reasoning", ECCV 2022, with the layers of the authors' code.
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
from mtlcore.ranges import Channels, Count, Nested, Range
from mtlcore.tasks import Task
from mtlcore_mtformer.swin import CrossTaskPair, SwinPair, Windows


@final
class MTFormer(WrappingBackbone):
    """Multi-task transformer over the maps of any encoder.

    The encoder's maps, each normalised and enlarged to the finest of them, are joined by a 1x1
    convolution. The result passes a pair of Swin blocks that all tasks share (`SwinPair`); from it
    every task computes its features by a pair of its own. Then each task attends to its features
    within windows: by scores of its own queries and keys, and by those of every other task's
    (`CrossTaskPair`). That is the map of the task's own that its head reads. With the head
    `mtformer` it is the published network.

    The features of a task are read by all others, so that no task can be added to a trained
    network.

    Args:
        tasks: of the run.
        backbone: the encoder, any backbone with maps that all tasks share, with its settings, such
            as {name = "timm", model = "swin_small_patch4_window7_224"}.
        channels: of all maps behind the encoder, a multiple of `heads`.
        heads: of attention.
        window: height and width of a window, in places.
        stride: of the finest map of the encoder that is read; finer ones are left out.

    Raises:
        UsageError: channels that cannot be split into heads, or an encoder that has not the maps.
    """

    reads_through = "backbone"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: Annotated[Callable[[Sequence[Task]], Backbone], Nested("backbones")],
        channels: Channels = 256,
        heads: Count = 4,
        window: Annotated[int, Range(ge=1, le=64)] = 7,
        stride: Count = 8,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise UsageError(
                f"model.backbone.channels: {channels} must be a multiple of the {heads} of "
                "model.backbone.heads"
            )
        self.encoder = backbone(tasks)
        self.input_kind = self.encoder.input_kind
        info = FeatureInfo.of(self.encoder)
        self._places = [place for place in info.pyramid if info.strides[place] >= stride]
        if self.input_kind != "image" or not self._places:
            raise UsageError(
                f"model.backbone.backbone: {type(self.encoder).__name__} has maps of the strides "
                f"{[info.strides[place] for place in info.pyramid]}, and MTFormer reads those of "
                f"{stride} (model.backbone.stride) and more; let it give a pyramid (in "
                "model.backbone.backbone, resnet: pyramid=true; unet: decoder=none), or choose "
                "another encoder"
            )
        finest = info.strides[self._places[-1]]
        self.input_multiple = math.lcm(self.encoder.input_multiple, finest)
        self.out_channels, self.strides = (channels,), (finest,)
        self._window = window
        self._keys = {task.name: task.key for task in tasks}
        widths = [info.channels[place] for place in self._places]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.join = nn.Conv2d(sum(widths), channels, 1)
        self.shared = SwinPair(channels, heads, window)
        keys = tuple(self._keys.values())
        self.own = nn.ModuleDict({key: SwinPair(channels, heads, window) for key in keys})
        self.cross = nn.ModuleDict(
            {key: CrossTaskPair(channels, heads, window, len(keys)) for key in keys}
        )

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of `input_multiple`.

        The cut is where tasks have features and have not attended to those of the others, unless
        the encoder makes predictions on the way.

        Raises:
            UsageError: the encoder gives tasks maps of their own.
        """
        found: Features = self.encoder(inputs, tasks)
        encoded = shared_maps("model.backbone.backbone", self.encoder, found)
        read = [
            norm(encoded[place].movedim(1, -1)).movedim(-1, 1)
            for norm, place in zip(self.norms, self._places, strict=True)
        ]
        size = read[-1].shape[2:]
        coarser = [
            F.interpolate(maps, size, mode="bilinear", align_corners=False) for maps in read[:-1]
        ]
        joined = self.join(torch.cat([*coarser, read[-1]], dim=1)).movedim(1, -1)
        windows = [
            Windows(size[0], size[1], self._window, shifted=shifted, device=joined.device)
            for shifted in (False, True)
        ]
        shared = self.shared(joined, windows)
        features = torch.stack([pair(shared, windows) for pair in self.own.values()])
        own = {}
        for task in tasks:
            number = list(self._keys).index(task)
            others = torch.cat([features[:number], features[number + 1 :]])
            attended = self.cross[self._keys[task]](features[number], others, windows)
            own[task] = (attended.movedim(-1, 1),)
        return Features(
            per_task=own,
            cut=() if found.early else (features,),
            early=found.early,
            terms=found.terms,
        )

    def wrapped(self) -> Sequence[Backbone]:
        """Return the encoder."""
        return (self.encoder,)

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return what only the task's loss reaches.

        That is its part of the encoder and its attention by the scores of all tasks: its features
        are read by all of them. A lone task has everything that is not the encoder's.
        """
        own = [self.encoder.task_parameters(task)]
        if len(self._keys) == 1:
            inside = {id(p) for p in self.encoder.parameters()}
            return chain(*own, (p for p in self.parameters() if id(p) not in inside))
        return chain(*own, self.cross[self._keys[task]].parameters())

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last linear layer of every task's features.

        A lone task shares nothing; then they are those of the encoder.
        """
        if len(self._keys) == 1:
            return self.encoder.last_shared_parameters()
        last = [pair.get_submodule("pair.1.perceptron.2") for pair in self.own.values()]
        return chain.from_iterable(layer.parameters() for layer in last)
