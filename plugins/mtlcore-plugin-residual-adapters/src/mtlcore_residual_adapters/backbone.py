"""Residual adapters: a small 1x1 convolution of each task at every 3x3 convolution that all share.

Rebuffi, Bilen and Vedaldi, "Learning multiple visual domains with residual adapters", NIPS 2017
(arXiv 1705.08045), in series; "Efficient parametrization of multi-domain deep neural networks",
CVPR 2018 (arXiv 1803.10082), in parallel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final

from torch import Tensor, nn

from mtlcore.errors import UsageError
from mtlcore.models import (
    Backbone,
    BackbonePerTask,
    ConditionedBackbone,
    LayerPerTask,
    ParallelAdapters,
    TaskLayer,
    adaptable,
    copies,
)
from mtlcore.tasks import Task


@final
class SeriesAdapters(TaskLayer):
    """A shared convolution y = C(x), and after it an adapter of each task: `y + A_t(BN_t(y))`.

    Args:
        tasks: that have an adapter.
        convolution: 3x3, shared.
    """

    def __init__(self, tasks: Sequence[Task], convolution: nn.Conv2d) -> None:
        channels = convolution.out_channels
        adapters = {task.key: nn.Conv2d(channels, channels, 1, bias=False) for task in tasks}
        for adapter in adapters.values():
            initialise(adapter.weight)
        super().__init__(
            {
                key: nn.Sequential(nn.BatchNorm2d(channels), adapter)
                for key, adapter in adapters.items()
            }
        )
        self.shared = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, C, H, W) -> (B, C', H / stride, W / stride)."""
        y = self.shared(x)
        adapted: Tensor = y + self.mine(y)
        return adapted


@final
class ResidualAdapters(ConditionedBackbone):
    """A pass per task through a shared encoder, with adapters and batch norms of the task's own.

    A 3x3 convolution C that is followed by batch norm computes for task t

        BN_t(C(x) + A_t(x))  in parallel,  or  BN_t(y + A_t(BN'_t(y))), y = C(x),  in series,

    with a 1x1 convolution A_t without bias. All 3x3 convolutions of the backbone inside have
    adapters, but those with groups; every batch norm is the task's own, and begins as the one that
    the backbone inside has, statistics included. What else the backbone inside has is shared. An
    adapter of a convolution has a ninth of its weights. Adapters are drawn as in the authors' code,
    normally with the variance 2 / (outputs).

    Maps are those of the backbone inside, for each task by itself: time and memory grow with the
    number of tasks. A task that joins (`mtl adapt`) changes nothing for the others.

    Args:
        encoder: the backbone inside, with its settings, such as {name = "resnet", depth = 18,
            pyramid = true}.
        placement: where adapters are: "parallel" to the convolution, or in "series" after it.
        frozen: whether what tasks share of the encoder (`Backbone.layer_groups`) stands still, as
            published for encoders that were trained before; what is in none of its layers, such as
            a decoder, learns as ever.

    Raises:
        UsageError: the backbone inside has no 3x3 convolution that could have an adapter, or
            computes maps again in the backward pass.
    """

    reads_through = "encoder"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        encoder: BackbonePerTask,
        placement: Literal["parallel", "series"] = "parallel",
        frozen: bool = False,
    ) -> None:
        super().__init__(tasks, "model.backbone.encoder", encoder)
        inner = self.encoder
        shared = {name: m for name, m in inner.named_modules() if _is_shared(inner, tasks, m)}
        convolutions = {name: module for name, module in shared.items() if adaptable(module)}
        if not convolutions:
            raise UsageError(
                f"model.backbone.encoder: {type(inner).__name__} has no 3x3 convolution that tasks "
                "share, and adapters are for these; choose a network that has, such as resnet"
            )
        layers: dict[str, nn.Module] = {
            name: ParallelAdapters(tasks, module, initialise)
            if placement == "parallel"
            else SeriesAdapters(tasks, module)
            for name, module in convolutions.items()
        }
        norms = {
            name: LayerPerTask(copies(tasks, module))
            for name, module in shared.items()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        self.put(layers | norms)
        self._facts = {"adapters": f"{placement}, at {len(layers)} convolutions, for each task"}
        if frozen:
            own = {id(p) for task in tasks for p in self.task_parameters(task.name)}
            for layer in inner.layer_groups() or [[*inner.parameters()]]:
                for parameter in layer:
                    if id(parameter) not in own:
                        parameter.requires_grad_(False)
        self.train(self.training)

    def facts(self) -> Mapping[str, str]:
        """Return what the backbone inside tells, and where adapters are."""
        return {**super().facts(), **self._facts}


def initialise(weight: Tensor) -> None:
    """Draw the weights of an adapter as the authors' code does: normal, variance 2 / (outputs)."""
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def _is_shared(backbone: Backbone, tasks: Sequence[Task], module: nn.Module) -> bool:
    """Return whether no task has a module for itself in the backbone inside."""
    own = {id(p) for task in tasks for p in backbone.task_parameters(task.name)}
    return not any(id(p) in own for p in module.parameters())
