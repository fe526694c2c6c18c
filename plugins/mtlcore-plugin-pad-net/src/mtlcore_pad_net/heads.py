"""The head of a final task: a decoder of residual bottlenecks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, final

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import FeatureInfo
from mtlcore.models import Neck
from mtlcore.ranges import Range
from mtlcore.standard.decoder_heads import DecoderHead
from mtlcore.standard.resnet import Bottleneck
from mtlcore.tasks import Task

Blocks = Annotated[int, Range(ge=1, le=100)]


@final
class Bottlenecks(Neck):
    """ResNet's bottlenecks, one after another, on the main map.

    Args:
        features: the main map is read (`FeatureInfo.main_map`).
        blocks: number of bottlenecks.
    """

    def __init__(self, features: FeatureInfo, *, blocks: int) -> None:
        super().__init__()
        self._place = features.main_map
        channels = features.channels[self._place]
        # A quarter of the channels is inside, and at least one.
        outputs = Bottleneck.expansion * max(1, channels // Bottleneck.expansion)
        inputs = (channels, *(outputs for _ in range(blocks - 1)))
        self.blocks = nn.Sequential(*(bottleneck(c, outputs) for c in inputs))
        self.out_channels, self.strides = (outputs,), (features.strides[self._place],)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute a map (B, out_channels[0], h, w) of the main one."""
        return (self.blocks(features[self._place]),)

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last bottleneck."""
        return self.blocks[-1].parameters()


def bottlenecks(task: Task, features: FeatureInfo, *, blocks: Blocks = 2) -> DecoderHead:
    """Predict by residual bottlenecks and a 1x1 convolution; enlarged to the input's size.

    The head of a final task of PAD-Net in Vandenhende et al. 2021. On 256 channels it has 140,800 +
    257 n parameters for n outputs.

    Args:
        task: its `channels` are the outputs.
        features: the main map is read.
        blocks: number of bottlenecks.
    """
    decoder = Bottlenecks(features, blocks=blocks)
    return DecoderHead(task, decoder, nn.Conv2d(decoder.out_channels[0], task.channels, 1))


def bottleneck(channels: int, outputs: int) -> Bottleneck:
    """Return a bottleneck of ResNet that gives so many outputs, a multiple of four."""
    return Bottleneck(channels, outputs // Bottleneck.expansion, 1, 1, 1)
