"""What attention and exchange run over: the SegNet of the papers, or the maps of any backbone.

A trunk is an encoder and a decoder that tasks share. Levels count from 0 at the finest map. Over a
backbone the encoder is the backbone itself, and a level is one of its maps; the decoder is U-Net's
(Ronneberger, Fischer and Brox, MICCAI 2015, arXiv 1505.04597), which goes up from the deepest map
and reads the others beside it. A backbone of one map has no decoder: what is attended to and
exchanged is that map.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from typing import Annotated, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import EarlyPrediction, FeatureInfo, Features
from mtlcore.models import Backbone, WrappingBackbone, shared_maps
from mtlcore.plugins import NO_COMPONENT
from mtlcore.ranges import Nested
from mtlcore.standard.segnet import (
    STRIDES,
    Decoded,
    SegNetDecoder,
    SegNetEncoder,
    filters_of,
)
from mtlcore.standard.unet import UNetDecoder
from mtlcore.tasks import Task

Encoder = Annotated[Callable[..., Backbone] | None, Nested("backbones")]
"""The setting `encoder`: what makes the backbone inside; None: the SegNet of the papers."""


@dataclass(frozen=True)
class Layout:
    """Channels of a trunk; tuples have one number per level, the finest first.

    Args:
        first: of the encoder's maps that masks are computed from.
        encoded: of those that masks multiply.
        latent: of the map that the decoder begins with.
        joined: of the decoder's maps that masks are computed from.
        decoded: of those that masks multiply.
        ratios: how much finer each level is than the next deeper one; of the last level: than the
            latent map.
        strides: of the latent map and of the finest decoded one.
    """

    first: tuple[int, ...]
    encoded: tuple[int, ...]
    latent: int
    joined: tuple[int, ...]
    decoded: tuple[int, ...]
    ratios: tuple[int, ...]
    strides: tuple[int, int]


@dataclass  # not attrs: torch.compile can follow this one
class Encoded:
    """What an encoder computed; tuples have one map per level, the finest first.

    Args:
        first: maps that masks are computed from.
        full: maps that masks multiply, of the same sizes.
        latent: the map that the decoder begins with.
        skipped: what the decoder reads beside it.
        early: task -> early predictions of the backbone inside.
        terms: its terms.
    """

    first: tuple[Tensor, ...]
    full: tuple[Tensor, ...]
    latent: Tensor
    skipped: tuple[Tensor, ...]
    early: Mapping[str, Sequence[EarlyPrediction]] = field(default_factory=dict)
    terms: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Trunk:
    """How a network of this plugin encodes and decodes.

    Args:
        layout: channels and strides.
        input_multiple: what sides of images must be multiples of.
        encoder: made once, to be part of the network.
        encode: runs the encoder on images for these tasks.
        make_decoder: makes a decoder, which is called with the latent map and `Encoded.skipped`.
    """

    layout: Layout
    input_multiple: int
    encoder: nn.Module
    encode: Callable[[nn.Module, Tensor, Sequence[str]], Encoded]
    make_decoder: Callable[[], nn.Module]


def trunk_of(tasks: Sequence[Task], width: float, encoder: Encoder) -> Trunk:
    """Return the trunk that settings ask for; its encoder is made here.

    Args:
        tasks: of the model.
        width: of the SegNet.
        encoder: what makes the backbone inside; None: SegNet.

    Raises:
        UsageError: there is an encoder and a width, or the encoder's maps make no trunk.
    """
    if encoder is None:
        return _segnet(width)
    refuse_width(width)
    return _over(encoder(tasks))


def refuse_width(width: float) -> None:
    """Refuse a width beside an encoder.

    Raises:
        UsageError: it is not 1.
    """
    if width != 1:
        raise UsageError(
            f"model.backbone.width: {width} is SegNet's, and an encoder is named; set the "
            "encoder's own (such as model.backbone.encoder.width), or leave the encoder out "
            f"(model.backbone.encoder.name={NO_COMPONENT})"
        )


class TrunkBackbone(WrappingBackbone, abc.ABC):
    """A backbone with a trunk. Maps: its latent one, and one like its finest decoded one.

    Args:
        trunk: its encoder becomes a part of the backbone, as `encoder`; what decodes is made by the
            class.
    """

    input_kind = "image"

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.out_channels = (trunk.layout.latent, trunk.layout.decoded[0])
        self.strides = trunk.layout.strides
        self.input_multiple = trunk.input_multiple
        self.encoder = trunk.encoder
        self._encode = trunk.encode

    def encode(self, inputs: Tensor, tasks: Sequence[str]) -> Encoded:
        """Run the encoder on images (B, 3, H, W), sides multiples of `input_multiple`."""
        return self._encode(self.encoder, inputs, tasks)

    def wrapped(self) -> Sequence[Backbone]:
        """Return the backbone inside; the SegNet of the papers is none."""
        return (self.encoder,) if isinstance(self.encoder, Backbone) else ()

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return what only this task's loss reaches in the backbone inside."""
        return chain.from_iterable(backbone.task_parameters(task) for backbone in self.wrapped())

    def last_convolution_of(self, decoder: nn.Module) -> Iterable[Parameter]:
        """Return the parameters of a decoder's last layer; of the encoder's if it has no level."""
        levels = decoder.get_submodule("levels")
        assert isinstance(levels, nn.ModuleList)
        for level in levels[:1]:
            *_, last = (part for part in level.modules() if isinstance(part, nn.Conv2d))
            return last.parameters()
        return chain.from_iterable(b.last_shared_parameters() for b in self.wrapped())


def _segnet(width: float) -> Trunk:
    """SegNet: masks read the first map of each level, and multiply its last one."""
    filters = filters_of(width)
    shallower = (filters[0], *filters[:-1])
    layout = Layout(
        first=filters,
        encoded=filters,
        latent=filters[-1],
        joined=filters,
        decoded=shallower,
        ratios=(2,) * len(filters),
        strides=STRIDES,
    )
    return Trunk(
        layout, STRIDES[0], SegNetEncoder(width), _run_segnet, partial(SegNetDecoder, width)
    )


def _run_segnet(encoder: nn.Module, inputs: Tensor, tasks: Sequence[str]) -> Encoded:
    found = encoder(inputs)
    return Encoded(found.first, found.full, found.latent, found.indices)


def _over(backbone: Backbone) -> Trunk:
    """Every map is a level: masks read it and multiply it."""
    info, name = FeatureInfo.of(backbone), type(backbone).__name__
    places = info.pyramid[::-1]
    if backbone.input_kind != "image" or not places:
        raise UsageError(
            f"model.backbone.encoder: {name} gives no maps to attend to; choose a backbone of "
            "images (mtl list backbones)"
        )
    channels = tuple(info.channels[place] for place in places)
    strides = [info.strides[place] for place in places]
    if any(deep % fine for fine, deep in pairwise(strides)):
        raise UsageError(
            "model.backbone.encoder: each stride of its maps must be a multiple of the next finer "
            f"one, and those of {name} are {strides}; choose other maps, or another backbone"
        )
    ratios = tuple(deep // fine for fine, deep in pairwise(strides))
    layout = Layout(
        first=channels,
        encoded=channels,
        latent=channels[-1],
        joined=(*(2 * number for number in channels[:-1]), channels[-1]),
        decoded=channels,
        ratios=(*ratios, 1),
        strides=(strides[-1], strides[0]),
    )
    return Trunk(
        layout,
        backbone.input_multiple,
        backbone,
        partial(_run_backbone, places),
        partial(PyramidDecoder, channels, ratios),
    )


def _run_backbone(
    places: Sequence[int], backbone: nn.Module, inputs: Tensor, tasks: Sequence[str]
) -> Encoded:
    # Small convolutions on a CPU take an eighth less time so.
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    assert isinstance(backbone, Backbone)
    features: Features = backbone(inputs, tasks)
    shared = shared_maps("model.backbone.encoder", backbone, features)
    maps = tuple(shared[place] for place in places)
    return Encoded(maps, maps, maps[-1], maps[:-1], features.early, features.terms)


@final
class PyramidDecoder(nn.Module):
    """U-Net's decoder over any pyramid, with what each level reads and computes.

    Args:
        channels: per level, the finest first.
        ratios: how much finer each level but the deepest is than the next one.
    """

    def __init__(self, channels: Sequence[int], ratios: Sequence[int]) -> None:
        super().__init__()
        self.unet = UNetDecoder(channels, ratios)

    @property
    def levels(self) -> nn.ModuleList:
        """The convolutions of each level but the deepest, the finest first."""
        return self.unet.levels

    def forward(self, latent: Tensor, skipped: Sequence[Tensor]) -> Decoded:
        """Compute the maps of every level; the deepest one is the latent map itself."""
        # A view, so that the map of one decoder is not that of another where there is one map.
        levels = [(latent, latent.view_as(latent)), *self.unet.upwards([*skipped, latent])]
        joined, full = zip(*reversed(levels), strict=True)
        return Decoded(joined, full)
