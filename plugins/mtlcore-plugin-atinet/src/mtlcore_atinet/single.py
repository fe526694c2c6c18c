"""The single-task baseline: a network per task, trained side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import final

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import EarlyPrediction, Features
from mtlcore.models import Backbone, WrappingBackbone
from mtlcore.ranges import Width
from mtlcore.standard.segnet import SegNet
from mtlcore.tasks import Task
from mtlcore_atinet.trunk import Encoder, refuse_width


@final
class SegNetPerTask(WrappingBackbone):
    """A complete network for each task: nothing is shared, so all parameters are a task's own.

    Under equal weighting one run trains what as many single-task runs would, on the same batches.
    Maps, per task: SegNet's latent one (512 width, stride 32) and decoded one (64 width, stride 1),
    or those of another backbone.

    Args:
        width: factor on all numbers of filters of SegNet; 1 is the published size.
        encoder: a backbone that each task gets one of, decoder included (such as
            `{name = "unet", width = 0.125}`); unset, or the name "none": SegNet, as in ATI-Net's
            experiments.

    Raises:
        UsageError: an encoder and a width for SegNet.
    """

    input_kind = "image"

    def __init__(
        self, tasks: Sequence[Task], *, width: Width = 1.0, encoder: Encoder = None
    ) -> None:
        super().__init__()
        if encoder is not None:
            refuse_width(width)
        make = partial(SegNet, width=width) if encoder is None else encoder
        networks = {task.key: make([task]) for task in tasks}
        one = next(iter(networks.values()))
        self.out_channels, self.strides, self.main_map = one.out_channels, one.strides, one.main_map
        self.input_multiple = one.input_multiple
        self._keys = {task.name: task.key for task in tasks}
        self.networks = nn.ModuleDict(networks)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of `input_multiple`."""
        found: dict[str, Features] = {
            task: self.networks[self._keys[task]](inputs, [task]) for task in tasks
        }
        early: dict[str, Sequence[EarlyPrediction]] = {}
        terms: dict[str, Tensor] = {}
        for task, features in found.items():
            early |= features.early
            terms |= {f"{name} of {task}": term for name, term in features.terms.items()}
        maps = {task: features.of(task) for task, features in found.items()}
        return Features(per_task=maps, early=early, terms=terms)

    def wrapped(self) -> Sequence[Backbone]:
        """Return the networks of all tasks."""
        return [network for network in self.networks.children() if isinstance(network, Backbone)]

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's network."""
        return self.networks[self._keys[task]].parameters()
