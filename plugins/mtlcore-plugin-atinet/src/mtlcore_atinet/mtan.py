"""MTAN: a network that all tasks share, and an attention branch per task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import final

from torch import Tensor
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.ranges import Width
from mtlcore.tasks import Task
from mtlcore_atinet.attention import Attention
from mtlcore_atinet.trunk import Encoder, TrunkBackbone, trunk_of


@final
class MTAN(TrunkBackbone):
    """Multi-Task Attention Network, on SegNet or over the maps of another backbone.

    Liu, Johns and Davison, CVPR 2019 (arXiv 1803.10704). Maps: the shared latent one (512 width,
    stride 32; of an encoder its deepest) and, per task, the one it attended to (64 width, stride 1;
    of an encoder's finest stride and its channels). There is no cut: masks of each task lie between
    the shared network and the shared convolutions of the branches.

    Args:
        width: factor on all numbers of filters of SegNet; 1 is the published size.
        encoder: a backbone whose maps are attended to, with U-Net's decoder over them (such as
            `{name = "unet", width = 0.125, decoder = "none"}`); unset, or the name "none": SegNet,
            as published.

    Raises:
        UsageError: an encoder and a width for SegNet, or an encoder whose maps do not fit.
    """

    def __init__(
        self, tasks: Sequence[Task], *, width: Width = 1.0, encoder: Encoder = None
    ) -> None:
        trunk = trunk_of(tasks, width, encoder)
        super().__init__(trunk)
        self.decoder = trunk.make_decoder()
        self.attention = Attention(tasks, trunk.layout)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of `input_multiple`."""
        encoded = self.encode(inputs, tasks)
        decoded = self.decoder(encoded.latent, encoded.skipped)
        attended = {task: (self.attention(task, encoded, decoded),) for task in tasks}
        return Features(
            shared=(encoded.latent,), per_task=attended, early=encoded.early, terms=encoded.terms
        )

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's masks, and what is its own in the encoder."""
        return chain(super().task_parameters(task), self.attention.task_parameters(task))

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the decoder's last convolution, whose map all masks multiply."""
        return self.last_convolution_of(self.decoder)
