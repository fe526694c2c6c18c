"""PAD-Net as ATI-Net's experiments have it: a decoder per task, distillation after decoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.models import Backbone
from mtlcore.ranges import Width
from mtlcore.standard.segnet import FILTERS, STRIDES, SegNetDecoder, SegNetEncoder, scaled
from mtlcore.tasks import Task
from mtlcore_atinet.gates import Gates


class PADNet(Backbone):
    """PAD-Net on SegNet: gated messages between the decoded maps of all tasks.

    Xu, Ouyang, Wang and Sebe, CVPR 2018 (arXiv 1805.04409), as the baseline in ATI-Net's published
    code: without the intermediate predictions and their deep supervision, so that messages are
    features and not predictions; with biases in the gates. Maps: the shared latent one (512 width,
    stride 32) and, per task, the distilled one (64 width, stride 1).

    Args:
        width: factor on all numbers of channels; 1 is the published size.
    """

    strides = STRIDES
    input_multiple = STRIDES[0]
    input_kind = "image"

    def __init__(self, tasks: Sequence[Task], *, width: Width = 1.0) -> None:
        super().__init__()
        self.out_channels = (scaled(FILTERS[-1], width), scaled(FILTERS[0], width))
        self._keys = {task.name: task.key for task in tasks}
        self.encoder = SegNetEncoder(width)
        self.decoders = nn.ModuleDict({task.key: SegNetDecoder(width) for task in tasks})
        self.gates = Gates(tasks, self.out_channels[-1])

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of 32; all decoders run.

        The cut is all decoded maps and a view of the latent one, which the decoders do not read:
        every path to a loss crosses it once.
        """
        encoded = self.encoder(inputs)
        latent = encoded.latent.view_as(encoded.latent)
        decoded = {
            task: self.decoders[key](encoded.latent, encoded.indices).output
            for task, key in self._keys.items()
        }
        distilled = {task: (self.gates(task, decoded),) for task in tasks}
        return Features(shared=(latent,), per_task=distilled, cut=(latent, *decoded.values()))

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return those of the gates into the task, and of its decoder if no other task reads it."""
        gates = self.gates.parameters_into(task)
        if len(self._keys) > 1:
            return gates
        return chain(self.decoders[self._keys[task]].parameters(), gates)
