"""MTAN: a SegNet that all tasks share, and an attention branch per task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.models import Backbone
from mtlcore.ranges import Width
from mtlcore.standard.segnet import FILTERS, STRIDES, SegNetDecoder, SegNetEncoder, scaled
from mtlcore.tasks import Task
from mtlcore_atinet.attention import Attention


class MTAN(Backbone):
    """Multi-Task Attention Network on SegNet.

    Liu, Johns and Davison, CVPR 2019 (arXiv 1803.10704). Maps: the shared latent one (512 width,
    stride 32) and, per task, the one it attended to (64 width, stride 1). There is no cut: masks
    of each task lie between the shared network and the shared convolutions of the branches.

    Args:
        width: factor on all numbers of filters; 1 is the published size.
    """

    strides = STRIDES
    input_multiple = STRIDES[0]
    input_kind = "image"

    def __init__(self, tasks: Sequence[Task], *, width: Width = 1.0) -> None:
        super().__init__()
        self.out_channels = (scaled(FILTERS[-1], width), scaled(FILTERS[0], width))
        self.encoder = SegNetEncoder(width)
        self.decoder = SegNetDecoder(width)
        self.attention = Attention(tasks, width)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of 32."""
        encoded = self.encoder(inputs)
        decoded = self.decoder(encoded.latent, encoded.indices)
        attended = {task: (self.attention(task, encoded, decoded),) for task in tasks}
        return Features(shared=(encoded.latent,), per_task=attended)

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's masks."""
        return self.attention.task_parameters(task)
