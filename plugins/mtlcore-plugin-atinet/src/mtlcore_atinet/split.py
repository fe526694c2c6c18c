"""The deep split baseline: one SegNet with twice the convolutions, for all tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.models import Backbone
from mtlcore.ranges import Width
from mtlcore.standard.segnet import (
    FILTERS,
    REST,
    STRIDES,
    SegNetDecoder,
    SegNetEncoder,
    scaled,
    split_features,
)
from mtlcore.tasks import Task

# A level's 1 + rest convolutions, and as many again at its output width.
_DEEP = tuple(2 * rest + 1 for rest in REST)


class DeepSegNet(Backbone):
    """SegNet with one decoder for all tasks and every level's convolutions twice over.

    The "split" baseline of ATI-Net, and "Split, deep" of MTAN's published code (Liu, Johns and
    Davison, CVPR 2019, arXiv 1803.10704): what more parameters without attention give. Maps: latent
    (512 width, stride 32) and decoded (64 width, stride 1).

    Args:
        width: factor on all numbers of filters; 1 is the published size.
    """

    strides = STRIDES
    input_multiple = STRIDES[0]
    input_kind = "image"

    def __init__(self, tasks: Sequence[Task], *, width: Width = 1.0) -> None:
        super().__init__()
        self.out_channels = (scaled(FILTERS[-1], width), scaled(FILTERS[0], width))
        self.encoder = SegNetEncoder(width, _DEEP)
        self.decoder = SegNetDecoder(width, _DEEP)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the two shared maps of images (B, 3, H, W), sides multiples of 32."""
        return split_features(self.encoder, self.decoder, inputs)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the decoder's last convolution."""
        *_, last = (
            part for part in self.decoder.levels[0].modules() if isinstance(part, nn.Conv2d)
        )
        return last.parameters()
