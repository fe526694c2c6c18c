"""A network that runs once for each task, some of whose layers compute something else for each.

The tasks share most of the network and still have a forward pass each. A
layer that knows the task is a `TaskLayer`; `ConditionedBackbone` puts such layers into another
backbone, tells them which task's pass is running, and says whose their parameters are.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TypeGuard, cast, final

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import EarlyPrediction, Features
from mtlcore.inputs import Inputs
from mtlcore.models.contracts import Backbone
from mtlcore.models.encoders import computes_again
from mtlcore.models.wrapping import WrappingBackbone
from mtlcore.tasks import Task

__all__ = [
    "ConditionedBackbone",
    "LayerPerTask",
    "ParallelAdapters",
    "TaskLayer",
    "adaptable",
    "copies",
]


class TaskLayer(nn.Module, abc.ABC):
    """A layer with a part for each task.

    Args:
        own: `Task.key` -> the task's part.
    """

    def __init__(self, own: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.own = nn.ModuleDict(own)
        self._key = next(iter(own))

    def enter(self, key: str) -> None:
        """Begin the pass of a task, named by its key."""
        self._key = key

    @property
    def mine(self) -> nn.Module:
        """The part of the task whose pass is running."""
        return self.own[self._key]


@final
class LayerPerTask(TaskLayer):
    """A layer of which each task has one of its own, such as a batch norm with its statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the task's layer computes."""
        y: Tensor = self.mine(x)
        return y


@final
class ParallelAdapters(TaskLayer):
    """A shared convolution, and beside it a 1x1 convolution of each task: `C(x) + A_t(x)`.

    Args:
        tasks: that have an adapter.
        convolution: shared, of a size for which one of 1x1 with its stride gives a map as large.
        initialise: draws the weights of an adapter, in place.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        convolution: nn.Conv2d,
        initialise: Callable[[Tensor], object],
    ) -> None:
        inputs, outputs = convolution.in_channels, convolution.out_channels
        stride = cast("tuple[int, int]", convolution.stride)
        adapters = {task.key: nn.Conv2d(inputs, outputs, 1, stride, bias=False) for task in tasks}
        for adapter in adapters.values():
            initialise(adapter.weight)
        super().__init__(adapters)
        self.shared = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, C, H, W) -> (B, C', H / stride, W / stride)."""
        y: Tensor = self.shared(x) + self.mine(x)
        return y


def adaptable(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether a module is a 3x3 convolution, without groups, that can have adapters."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (3, 3)
        and module.groups == 1
        # Otherwise its map is not as large as that of a 1x1 convolution of the same stride.
        and module.padding == module.dilation
    )


def copies(tasks: Sequence[Task], layer: nn.Module) -> dict[str, nn.Module]:
    """Return a copy of a layer, with its weights and buffers, for the key of each task."""
    return {task.key: copy.deepcopy(layer) for task in tasks}


class ConditionedBackbone(WrappingBackbone, abc.ABC):
    """A pass per task through another backbone, some of whose layers know the task.

    Maps are those of the backbone inside, all of them the task's own, unless a class sets
    `out_channels` and `strides` to others. Time and memory of a step grow with the number of tasks.

    Args:
        tasks: of the run.
        setting: path of the setting that is the backbone inside, for messages.
        backbone: makes the backbone inside.

    Raises:
        UsageError: it computes maps again in the backward pass, which would be the last task's.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        setting: str,
        backbone: Callable[[Sequence[Task]], Backbone],
    ) -> None:
        super().__init__()
        inner = backbone(tasks)
        self.out_channels, self.strides = inner.out_channels, inner.strides
        self.main_map, self.input_multiple = inner.main_map, inner.input_multiple
        self.input_kind = inner.input_kind
        if any(computes_again(module) for module in inner.modules()):
            raise UsageError(
                f"{setting}.gradient_checkpointing: it computes layers again as those of the last "
                "task; leave it off"
            )
        self.encoder = inner
        self._keys = {task.name: task.key for task in tasks}
        self._layers: list[TaskLayer] = []

    def put(self, layers: Mapping[str, nn.Module]) -> None:
        """Put layers in the place of those that the backbone inside has under these names."""
        for name, layer in layers.items():
            parent, _, last = name.rpartition(".")
            setattr(self.encoder.get_submodule(parent), last, layer)

    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Compute the features of each task by itself."""
        own: dict[str, tuple[Tensor, ...]] = {}
        early: dict[str, Sequence[EarlyPrediction]] = {}
        terms: dict[str, Tensor] = {}
        for task in tasks:
            for layer in self._task_layers():
                layer.enter(self._keys[task])
            features: Features = self.encoder(inputs, [task])
            own[task] = self.decode(features.of(task))
            early |= features.early
            terms |= {f"{name} of {task}": term for name, term in features.terms.items()}
        return Features(per_task=own, early=early, terms=terms)

    def decode(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the task's head reads of the maps of its pass; here, these."""
        return maps

    def wrapped(self) -> Sequence[Backbone]:
        """Return the backbone inside."""
        return (self.encoder,)

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the task's parts of all layers, and what is its own in the backbone inside."""
        key = self._keys[task]
        parts = (layer.own[key].parameters() for layer in self._task_layers())
        return chain(self.encoder.task_parameters(task), chain.from_iterable(parts))

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return those of the backbone inside that no task has for itself."""
        own = {id(p) for task in self._keys for p in self.task_parameters(task)}
        return [p for p in self.encoder.last_shared_parameters() if id(p) not in own]

    def _task_layers(self) -> Sequence[TaskLayer]:
        # Listed once: walking the modules takes longer than a small one of them.
        if not self._layers:
            self._layers = [module for module in self.modules() if isinstance(module, TaskLayer)]
        return self._layers
