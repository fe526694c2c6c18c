"""One scale of MTI-Net: a map and a prediction of every task, messages, and what the next gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.standard.messages import Gate, Messages
from mtlcore.standard.resnet import BasicBlock
from mtlcore.tasks import Task
from mtlcore_mtinet.propagation import FeaturePropagation


@final
class Scale(nn.Module):
    """What happens at one of the encoder's maps.

    Args:
        tasks: all.
        finals: those whose maps are refined by messages.
        predicting: those whose initial prediction is made here; that of others is a head's.
        channels: of the encoder's map, and of each task's.
        deeper: channels of what the next deeper scale hands on; 0 at the deepest.
        finest: whether there is no finer scale to hand anything to.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        finals: Sequence[Task],
        predicting: Sequence[Task],
        channels: int,
        deeper: int,
        *,
        finest: bool,
    ) -> None:
        super().__init__()
        self._keys = {task.name: task.key for task in tasks}
        self.refine = nn.ModuleDict(
            {
                key: nn.Sequential(_block(channels + deeper, channels), _block(channels, channels))
                for key in self._keys.values()
            }
        )
        self.initial = nn.ModuleDict(
            {task.key: nn.Conv2d(channels, task.channels, 1) for task in predicting}
        )
        self.messages = Messages(tasks, finals, partial(Gate, channels, _conv))
        self.propagate = None if finest else FeaturePropagation(tasks, channels)

    def maps(
        self, encoded: Tensor, handed: Mapping[str, Tensor], tasks: Iterable[str]
    ) -> dict[str, Tensor]:
        """Compute the maps of these tasks.

        Args:
            encoded: the encoder's map, (B, channels, H, W).
            handed: task -> what the next deeper scale hands on; empty at the deepest.
            tasks: names.

        Returns:
            Task -> (B, channels, H, W).
        """
        found = {}
        for task in tasks:
            read = encoded
            if handed:
                size = encoded.shape[2:]
                finer = F.interpolate(handed[task], size, mode="bilinear", align_corners=False)
                read = torch.cat([encoded, finer], dim=1)
            found[task] = self.refine[self._keys[task]](read)
        return found

    def predict(self, task: str, maps: Mapping[str, Tensor]) -> Tensor | None:
        """Compute the initial prediction of a task; None: it is not made here."""
        key = self._keys[task]
        return self.initial[key](maps[task]) if key in self.initial else None

    def parameters_of_predictions(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's initial prediction."""
        key = self._keys[task]
        return self.initial[key].parameters() if key in self.initial else ()

    def refining(self, task: str) -> nn.Module:
        """Return the blocks that compute the task's map."""
        return self.refine[self._keys[task]]

    def parameters_of_handing(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of what picks the task's part of what is handed on."""
        if self.propagate is None:
            return ()
        return self.propagate.excite[self._keys[task]].parameters()


def _block(channels: int, outputs: int) -> BasicBlock:
    return BasicBlock(channels, outputs, 1, 1, 1)


def _conv(channels: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
