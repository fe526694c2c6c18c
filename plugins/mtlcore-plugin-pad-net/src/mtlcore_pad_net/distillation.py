"""PAD-Net's distillation modules: what a task makes of the maps of all tasks.

Xu, Ouyang, Wang and Sebe, CVPR 2018 (arXiv 1805.04409), section 3.3. Every convolution belongs to
an ordered pair of tasks or to one task, so that tasks can be added to a trained network.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.standard.messages import Gate, Messages
from mtlcore.tasks import Task

#: The modules by the names that the paper has for them; of C there are two forms.
Module: TypeAlias = Literal["a", "b", "c", "c-receiver"]


class Distillation(nn.Module, abc.ABC):
    """Computes a task's distilled map of the maps of all tasks.

    Args:
        messages: between the tasks.
    """

    def __init__(self, messages: Messages) -> None:
        super().__init__()
        self.messages = messages

    @abc.abstractmethod
    def forward(self, target: str, maps: Mapping[str, Tensor]) -> Tensor:
        """Compute the distilled map of a task, of the shape of its own map."""

    def parameters_into(self, target: str) -> Iterable[Parameter]:
        """Return the parameters that only the target's map is made by."""
        return self.messages.parameters_into(target)


@final
class Concatenation(Distillation):
    """Module A: all maps side by side, projected to the channels of one.

    A 1x1 convolution of maps side by side is the sum of one convolution of each. In the paper the
    task's decoder reads all channels instead.

    Args:
        tasks: all.
        receivers: those that get a distilled map.
        channels: of every map.
    """

    def __init__(self, tasks: Sequence[Task], receivers: Sequence[Task], channels: int) -> None:
        project = partial(nn.Conv2d, channels, channels, 1, bias=False)
        super().__init__(Messages(tasks, receivers, project))
        self._keys = {task.name: task.key for task in receivers}
        self.own = nn.ModuleDict({key: project() for key in self._keys.values()})

    def forward(self, target: str, maps: Mapping[str, Tensor]) -> Tensor:
        """Compute the sum of all projected maps."""
        own = self.own[self._keys[target]](maps[target])
        return self.messages(target, {**maps, target: own})  # type: ignore[no-any-return]

    def parameters_into(self, target: str) -> Iterable[Parameter]:
        """Return the parameters of the projections."""
        own = self.own[self._keys[target]].parameters()
        return chain(super().parameters_into(target), own)


@final
class Sum(Distillation):
    """Modules B and C: the task's own map, and a message from every other one."""

    def forward(self, target: str, maps: Mapping[str, Tensor]) -> Tensor:
        """Compute the sum of the map and what it receives."""
        return self.messages(target, maps)  # type: ignore[no-any-return]


@final
class ReceiverGated(Distillation):
    """Module C with a gate that reads the map of the task that receives, one for all messages.

    Args:
        tasks: all.
        receivers: those that get a distilled map.
        channels: of every map.
    """

    def __init__(self, tasks: Sequence[Task], receivers: Sequence[Task], channels: int) -> None:
        super().__init__(Messages(tasks, receivers, partial(_conv, channels, channels)))
        self._keys = {task.name: task.key for task in receivers}
        # Without another task there is nothing to let through.
        gated = self._keys.values() if len(tasks) > 1 else ()
        self.gates = nn.ModuleDict({key: _conv(channels, channels) for key in gated})

    def forward(self, target: str, maps: Mapping[str, Tensor]) -> Tensor:
        """Compute `F_t + sigmoid(conv(F_t)) * sum of the messages`."""
        own = maps[target]
        if not self.gates:
            return own
        gate = torch.sigmoid(self.gates[self._keys[target]](own))
        return own + gate * torch.stack(self.messages.received(target, maps)).sum(0)

    def parameters_into(self, target: str) -> Iterable[Parameter]:
        """Return the parameters of the messages and of the gate."""
        gate = self.gates[self._keys[target]].parameters() if self.gates else ()
        return chain(super().parameters_into(target), gate)


def make_distillation(
    module: Module, tasks: Sequence[Task], receivers: Sequence[Task], channels: int
) -> Distillation:
    """Make a distillation module.

    Args:
        module: its name.
        tasks: all.
        receivers: those that get a distilled map.
        channels: of every map.
    """
    if module == "a":
        return Concatenation(tasks, receivers, channels)
    if module == "c-receiver":
        return ReceiverGated(tasks, receivers, channels)
    message: Callable[[], nn.Module] = partial(_conv, channels, channels)
    if module == "c":
        message = partial(Gate, channels, _conv)
    return Sum(Messages(tasks, receivers, message))


def _conv(channels: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
