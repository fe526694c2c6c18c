"""PAD-Net's distillation between tasks: gated messages from every other task's map.

Xu, Ouyang, Wang and Sebe, "PAD-Net", CVPR 2018 (arXiv 1805.04409), distillation module C: the
attention-guided message passing, which ATI-Net applies to much smaller maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.standard.segnet import conv
from mtlcore.tasks import Task


class Gate(nn.Module):
    """A message from one task to another: `conv(x) * sigmoid(conv'(x))`, 3x3 with biases.

    Args:
        channels: of the map that goes in and of the message.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.message = conv(channels, channels)
        self.attention = conv(channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute the message, (B, channels, H, W) -> the same shape."""
        message: Tensor = self.message(maps)
        return message * torch.sigmoid(self.attention(maps))


class Gates(nn.Module):
    """One gate per ordered pair of tasks; with one task there is none, and maps stay as they are.

    Args:
        tasks: that send and receive.
        channels: of their maps.
    """

    def __init__(self, tasks: Sequence[Task], channels: int) -> None:
        super().__init__()
        self._keys = {task.name: task.key for task in tasks}
        self.into = nn.ModuleDict(
            {
                target.key: nn.ModuleDict(
                    {source.key: Gate(channels) for source in tasks if source is not target}
                )
                for target in tasks
            }
        )

    def forward(self, target: str, maps: Mapping[str, Tensor]) -> Tensor:
        """Add the messages of all others to the target's map: `F_t + sum_a SA_ta(F_a)`.

        ATI-Net's text has the messages "concatenated and summed along the channel dimension"; as in
        its code that is a sum per element, and channels stay.
        """
        gates = self._gates(target)
        received = maps[target]
        for source, key in self._keys.items():
            if source != target:
                received = received + gates[key](maps[source])
        return received

    def parameters_into(self, target: str) -> Iterable[Parameter]:
        """Return the parameters of the gates whose messages the target receives."""
        return self._gates(target).parameters()

    def _gates(self, target: str) -> nn.ModuleDict:
        gates = self.into[self._keys[target]]
        assert isinstance(gates, nn.ModuleDict)
        return gates
