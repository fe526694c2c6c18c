"""The single-task baseline: a network per task, trained side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.models import Backbone
from mtlcore.ranges import Width
from mtlcore.standard.segnet import FILTERS, STRIDES, SegNet, scaled
from mtlcore.tasks import Task


class SegNetPerTask(Backbone):
    """A complete SegNet for each task: nothing is shared, so all parameters are a task's own.

    Under equal weighting one run trains what as many single-task runs would, on the same batches.
    Maps, per task: latent (512 width, stride 32) and decoded (64 width, stride 1).

    Args:
        width: factor on all numbers of filters; 1 is the published size.
    """

    strides = STRIDES
    input_multiple = STRIDES[0]
    input_kind = "image"

    def __init__(self, tasks: Sequence[Task], *, width: Width = 1.0) -> None:
        super().__init__()
        self.out_channels = (scaled(FILTERS[-1], width), scaled(FILTERS[0], width))
        self._keys = {task.name: task.key for task in tasks}
        self.networks = nn.ModuleDict({task.key: SegNet([task], width=width) for task in tasks})

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of 32."""
        maps = {task: self.networks[self._keys[task]](inputs, [task]).shared for task in tasks}
        return Features(per_task=maps)

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's network."""
        return self.networks[self._keys[task]].parameters()
