"""PAD-Net as ATI-Net's experiments have it: a decoder per task, distillation after decoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from typing import final

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.ranges import Width
from mtlcore.standard.messages import Gate, Messages
from mtlcore.standard.segnet import conv
from mtlcore.tasks import Task
from mtlcore_atinet.trunk import Encoder, TrunkBackbone, trunk_of


@final
class PADNet(TrunkBackbone):
    """PAD-Net: gated messages between the decoded maps of all tasks.

    Xu, Ouyang, Wang and Sebe, CVPR 2018 (arXiv 1805.04409), as the baseline in ATI-Net's published
    code, on SegNet: without the intermediate predictions and their deep supervision, so that
    messages are features and not predictions; with biases in the gates. Maps: the shared latent one
    (512 width, stride 32; of an encoder its deepest) and, per task, the distilled one (64 width,
    stride 1; of an encoder's finest stride and its channels).

    Args:
        width: factor on all numbers of channels of SegNet; 1 is the published size.
        encoder: a backbone whose maps each task decodes, by a U-Net's decoder (such as
            `{name = "unet", width = 0.125, decoder = "none"}`); unset, or the name "none": SegNet,
            as in ATI-Net's experiments.

    Raises:
        UsageError: an encoder and a width for SegNet, or an encoder whose maps do not fit.
    """

    def __init__(
        self, tasks: Sequence[Task], *, width: Width = 1.0, encoder: Encoder = None
    ) -> None:
        trunk = trunk_of(tasks, width, encoder)
        super().__init__(trunk)
        self._keys = {task.name: task.key for task in tasks}
        self.decoders = nn.ModuleDict({task.key: trunk.make_decoder() for task in tasks})
        self.gates = Messages(tasks, tasks, partial(Gate, self.out_channels[-1], conv))

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W); all decoders run.

        The cut is all decoded maps and a view of the latent one, which the decoders do not read:
        every path to a loss crosses it once. There is none where the encoder predicts early.
        """
        encoded = self.encode(inputs, tasks)
        latent = encoded.latent.view_as(encoded.latent)
        decoded = {
            task: self.decoders[key](encoded.latent, encoded.skipped).output
            for task, key in self._keys.items()
        }
        distilled = {task: (self.gates(task, decoded),) for task in tasks}
        return Features(
            shared=(latent,),
            per_task=distilled,
            cut=() if encoded.early else (latent, *decoded.values()),
            early=encoded.early,
            terms=encoded.terms,
        )

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return what only the task's loss reaches.

        That is its part of the encoder, the gates into it, and its decoder if no other task reads
        its map.
        """
        own = chain(super().task_parameters(task), self.gates.parameters_into(task))
        if len(self._keys) > 1:
            return own
        return chain(own, self.decoders[self._keys[task]].parameters())

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of every decoder's last convolution; a lone one is the task's."""
        if len(self._keys) == 1:
            return ()
        last = [p for decoder in self.decoders.values() for p in self.last_convolution_of(decoder)]
        return {id(parameter): parameter for parameter in last}.values()
