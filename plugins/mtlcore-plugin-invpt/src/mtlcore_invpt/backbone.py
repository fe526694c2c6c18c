"""InvPT: a transformer decoder that all tasks share, and whose resolution grows.

Ye and Xu, "Inverted Pyramid Multi-task Transformer for Dense Scene Understanding", ECCV 2022
(arXiv 2203.07997), with the layers of the authors' code.
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
from mtlcore.features import EarlyPrediction, FeatureInfo, Features
from mtlcore.models import Backbone, WrappingBackbone, shared_maps
from mtlcore.ranges import Channels, Nested
from mtlcore.tasks import Task
from mtlcore_invpt.stage import HEADS, Stage

#: The channels of a stage, as parts of those of the first.
PARTS = (1, 2, 4)
#: Keys and values of each stage are means of squares of this side: as many in every stage.
POOLING = (2, 4, 8)
#: How much finer than the first stage's the maps are that heads read.
GROWTH = 8


@final
class InvPT(WrappingBackbone):
    """Inverted pyramid multi-task transformer over the maps of any encoder.

    From the encoder's deepest map each task computes features by two convolutions, and of these a
    preliminary prediction, whose loss counts as much as that of the final one. Features and
    prediction side by side, projected, are the task's map in the first of three stages. In each,
    all places of all tasks attend to one another (`Stage`); the second and the third double height
    and width and halve the channels, add a map of the encoder, and mix their attention with that of
    the stage before. The maps of the three stages, enlarged and projected, are added up for every
    task; its head reads the sum after a convolution: a map of the task's own, of `channels`
    channels, eight times finer than the first stage. With the head `pointwise` that is the
    published network.

    The first stage has the stride of the encoder's deepest map, and finer maps of half and of a
    quarter of that stride are added in the other two. A plain transformer, all of whose maps have
    one stride, is read as published: the first stage has twice that stride, and the last map but
    one and the last one, which come from earlier blocks, are added, the latter by a transposed
    convolution.

    Every stage mixes all tasks, so that no task can be added to a trained network.

    Args:
        tasks: of the run.
        backbone: the encoder, any backbone with maps that all tasks share, with its settings, such
            as {name = "timm", model = "vit_base_patch16_384", pyramid = "none",
            out_indices = [2, 5, 11]}.
        preliminary: channels of each task's features, of which the preliminary prediction is made.
        channels: of the first stage, and of every task's map; the second and the third have half
            and a quarter of them. A multiple of eight.

    Raises:
        UsageError: channels that cannot be split into stages and heads, or an encoder that has not
            the maps.
    """

    reads_through = "backbone"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: Annotated[Callable[[Sequence[Task]], Backbone], Nested("backbones")],
        preliminary: Channels = 512,
        channels: Channels = 576,
    ) -> None:
        super().__init__()
        if channels % (PARTS[-1] * HEADS):
            raise UsageError(
                f"model.backbone.channels: {channels} must be a multiple of {PARTS[-1] * HEADS}, "
                "as the last stage has a quarter of them, in two heads"
            )
        self.encoder = backbone(tasks)
        self.input_kind = self.encoder.input_kind
        info = FeatureInfo.of(self.encoder)
        self._start, *self._added = _places(info, self.encoder)
        deepest = info.strides[self._start]
        plain = len({info.strides[place] for place in (self._start, *self._added)}) == 1
        stride = 2 * deepest if plain else deepest
        if stride % GROWTH:
            raise UsageError(
                f"model.backbone.backbone: the first stage would have the stride {stride}, and "
                f"heads read maps {GROWTH} times finer; choose an encoder with which the stride is "
                f"a multiple of {GROWTH}"
            )
        self._stride = stride
        self.input_multiple = math.lcm(self.encoder.input_multiple, stride)
        self.out_channels, self.strides = (channels,), (stride // GROWTH,)
        self._keys = {task.name: task.key for task in tasks}
        keys = tuple(self._keys.values())
        deepest_channels = info.channels[self._start]
        self.preliminary = nn.ModuleDict(
            {
                key: nn.Sequential(
                    *_block(deepest_channels, deepest_channels),
                    *_block(deepest_channels, preliminary),
                )
                for key in keys
            }
        )
        self.initial = nn.ModuleDict(
            {task.key: nn.Conv2d(preliminary, task.channels, 1) for task in tasks}
        )
        self.join = nn.ModuleDict(
            {task.key: nn.Conv2d(preliminary + task.channels, channels, 1) for task in tasks}
        )
        widths = [channels // part for part in PARTS]
        self.skip = nn.ModuleList(
            _skip(info.channels[place], width, doubles=info.strides[place] * part > stride)
            for place, width, part in zip(self._added, widths[1:], PARTS[1:], strict=True)
        )
        self.stages = nn.ModuleList(
            Stage(keys, inputs, width, pooling, grows=inputs != width)
            for inputs, width, pooling in zip(
                (channels, *widths[:-1]), widths, POOLING, strict=True
            )
        )
        self.norms = nn.ModuleList(nn.LayerNorm(len(keys) * width) for width in widths)
        self.project = nn.ModuleDict(
            {
                key: nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths[1:])
                for key in keys
            }
        )
        self.output = nn.ModuleDict({key: _output(channels) for key in keys})

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of `input_multiple`.

        There is no cut: preliminary predictions are made of what the stages read.

        Raises:
            UsageError: the encoder gives tasks maps of their own.
        """
        found: Features = self.encoder(inputs, tasks)
        encoded = shared_maps("model.backbone.backbone", self.encoder, found)
        height, width = (side // self._stride for side in inputs.shape[2:])
        start = _resized(encoded[self._start], (height, width))
        predictions, joined = {}, []
        for task, key in self._keys.items():
            features = self.preliminary[key](start)
            predictions[task] = self.initial[key](features)
            joined.append(self.join[key](torch.cat([features, predictions[task]], dim=1)))
        maps, scores = torch.stack(joined, dim=1).movedim(2, -1), None
        added = [skip(encoded[place]) for skip, place in zip(self.skip, self._added, strict=True)]
        normed = []
        for stage, norm, here in zip(self.stages, self.norms, (None, *added), strict=True):
            maps, scores = stage(maps, here, scores)
            # All tasks' channels of a place are normalised together.
            together = maps.movedim(1, 3)
            normed.append(norm(together.flatten(3)).unflatten(3, together.shape[3:]))
        own = {
            task: (self._summed(task, normed, (GROWTH * height, GROWTH * width)),) for task in tasks
        }
        if not self.training:
            return Features(per_task=own)
        early = {task: list(several) for task, several in found.early.items()}
        for task in tasks:
            early.setdefault(task, []).append(EarlyPrediction(predictions[task]))
        return Features(per_task=own, early=early, terms=found.terms)

    def wrapped(self) -> Sequence[Backbone]:
        """Return the encoder."""
        return (self.encoder,)

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return what only the task's loss reaches.

        That is its part of the encoder and what adds up its maps: its features and its preliminary
        prediction are read by all tasks. A lone task has everything that is not the encoder's.
        """
        own = [self.encoder.task_parameters(task)]
        if len(self._keys) == 1:
            inside = {id(p) for p in self.encoder.parameters()}
            return chain(*own, (p for p in self.parameters() if id(p) not in inside))
        key = self._keys[task]
        own += [self.project[key].parameters(), self.output[key].parameters()]
        return chain.from_iterable(own)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last linear layer of every stage.

        A lone task shares nothing; then they are those of the encoder.
        """
        if len(self._keys) == 1:
            return self.encoder.last_shared_parameters()
        last = [stage.get_submodule("perceptron.2") for stage in self.stages]
        return chain.from_iterable(layer.parameters() for layer in last)

    def _summed(self, task: str, stages: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Add up what the stages (B, H, W, T, C) made for a task; return (B, channels, *size)."""
        key, number = self._keys[task], list(self._keys).index(task)
        own = [maps[:, :, :, number].movedim(-1, 1) for maps in stages]
        projects = self.project[key]
        assert isinstance(projects, nn.ModuleList)
        own[1:] = [one(x) for one, x in zip(projects, own[1:], strict=True)]
        total = torch.stack([_resized(x, size) for x in own]).sum(0)
        output: Tensor = self.output[key](total)
        return output


def _places(info: FeatureInfo, encoder: Backbone) -> tuple[int, int, int]:
    """Return the places of the map of the first stage, and of those added in the other two.

    Raises:
        UsageError: there are none.
    """
    places = info.pyramid
    strides = [info.strides[place] for place in places]
    if len(places) > 2 and len(set(strides)) == 1:
        return places[0], places[-2], places[-1]
    # The deepest map of each stride.
    of_stride = dict(zip(reversed(strides), reversed(places), strict=True))
    wanted = [strides[0] / part for part in PARTS] if strides else []
    if encoder.input_kind != "image" or not wanted or not of_stride.keys() >= set(wanted):
        raise UsageError(
            f"model.backbone.backbone: {type(encoder).__name__} has maps of the strides {strides}; "
            "InvPT reads one, and others of half and of a quarter of its stride, or three or more "
            "of a plain transformer; let it give a pyramid (in model.backbone.backbone, resnet: "
            "pyramid=true; unet: decoder=none) or the maps of several blocks (timm: out_indices), "
            "or choose another encoder"
        )
    first, second, third = (of_stride[int(stride)] for stride in wanted)
    return first, second, third


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Return a 3x3 convolution with batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def _skip(inputs: int, outputs: int, *, doubles: bool) -> nn.Module:
    """Return the convolution of an encoder's map that is added, and that may double its sides."""
    if doubles:
        return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _output(channels: int) -> nn.Sequential:
    """Return the convolution of what the stages added up to, initialised as published."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    nn.init.trunc_normal_(convolution.weight, std=0.02)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
