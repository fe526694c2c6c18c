"""Messages between tasks: what each receives from the maps of all others.

The attention-guided messages are those of PAD-Net (Xu, Ouyang, Wang and Sebe, CVPR 2018, arXiv
1805.04409, distillation module C) in the form of Vandenhende et al. 2021, where the gate reads the
map that is sent; MTI-Net and ATI-Net have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.tasks import Task, refuse_unknown_tasks

__all__ = ["Gate", "Messages", "final_tasks"]


@final
class Gate(nn.Module):
    """A message that says itself where it matters: `conv(x) * sigmoid(conv'(x))`.

    Args:
        channels: of the map that goes in and of the message.
        conv: makes a convolution that keeps the size of its map, called with the channels of its
            input and of its output.
    """

    def __init__(self, channels: int, conv: Callable[[int, int], nn.Conv2d]) -> None:
        super().__init__()
        self.message = conv(channels, channels)
        self.attention = conv(channels, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute the message, (B, channels, H, W) -> the same shape."""
        message: Tensor = self.message(maps)
        return message * torch.sigmoid(self.attention(maps))


@final
class Messages(nn.Module):
    """One network per ordered pair of tasks; whoever has no other task to hear receives nothing.

    Args:
        senders: whose maps messages are made of.
        receivers: who receive, a message from every other sender.
        make: makes the network of one pair.
    """

    def __init__(
        self, senders: Sequence[Task], receivers: Sequence[Task], make: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self._keys = {task.name: task.key for task in (*senders, *receivers)}
        self._senders = tuple(task.name for task in senders)
        self.into = nn.ModuleDict(
            {
                target.key: nn.ModuleDict(
                    {source.key: make() for source in senders if source.name != target.name}
                )
                for target in receivers
            }
        )

    def forward(self, target: str, maps: Mapping[str, Tensor]) -> Tensor:
        """Add the messages of all others to the target's map: `F_t + sum_s message_ts(F_s)`."""
        found = maps[target]
        for message in self.received(target, maps):
            found = found + message
        return found

    def received(self, target: str, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Compute the messages of all others to one task, in the order of the senders."""
        networks = self._networks(target)
        return [
            networks[self._keys[source]](maps[source])
            for source in self._senders
            if source != target
        ]

    def parameters_into(self, target: str) -> Iterable[Parameter]:
        """Return the parameters of the networks whose messages the target receives."""
        return self._networks(target).parameters()

    def _networks(self, target: str) -> nn.ModuleDict:
        networks = self.into[self._keys[target]]
        assert isinstance(networks, nn.ModuleDict)
        return networks


def final_tasks(tasks: Sequence[Task], auxiliary: Sequence[str]) -> list[Task]:
    """Return the tasks that are not auxiliary: auxiliary ones send messages and receive none.

    Args:
        tasks: of the run.
        auxiliary: names of those that are.

    Raises:
        UsageError: There is no task of such a name, or no task is left.
    """
    refuse_unknown_tasks("model.backbone.auxiliary", auxiliary, tasks)
    finals = [task for task in tasks if task.name not in auxiliary]
    if not finals:
        raise UsageError(
            "model.backbone.auxiliary: it names all tasks of the run; leave out those that are to "
            "be predicted in the end"
        )
    return finals
