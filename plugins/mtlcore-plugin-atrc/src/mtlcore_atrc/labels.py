"""Labels: a coarse prediction of every task, as maps of which label is where."""

from __future__ import annotations

import abc
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.tasks import Task

# The authors' range of depths in metres, cut into bins whose ends grow by the same factor.
_NEAREST, _FARTHEST = 0.7, 10.0
# Of every convolution that predicts, in the authors' code.
_STD = 0.01


class Readout(nn.Module, abc.ABC):
    """Makes a task's prediction of its labels.

    Attributes:
        labels: how many there are.
    """

    labels: int

    @abc.abstractmethod
    def forward(self, logits: Tensor) -> Tensor:
        """Compute the prediction, (B, labels, h, w) -> (B, task.channels, h, w)."""


@final
class Classes(Readout):
    """A task of classes: labels are its classes, and their logits the prediction.

    Args:
        classes: their number.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.labels = classes

    def forward(self, logits: Tensor) -> Tensor:
        """Return the logits."""
        return logits


@final
class Pairs(Readout):
    """A task of shares, such as edges: two labels for each, and the difference of their logits.

    The binary cross-entropy of the difference is the cross-entropy of the two.

    Args:
        channels: of the task.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.labels = 2 * channels

    def forward(self, logits: Tensor) -> Tensor:
        """Return the logit of every first label less that of its second one."""
        first, second = logits.chunk(2, dim=1)
        return first - second


@final
class Mixed(Readout):
    """A task of other values: each label stands for one that it learns, mixed by the softmax.

    Args:
        task: whose values they are. Of depth the labels begin as bins that grow by the same factor
            from 0.7 to 10, of directions at random ones, of all else normally drawn.
        labels: their number.
    """

    def __init__(self, task: Task, labels: int) -> None:
        super().__init__()
        self.labels = labels
        values = torch.randn(labels, task.channels)
        if task.values == "direction":
            values = F.normalize(values)
        elif task.kind == "depth" and not task.standardise:
            middle = (torch.arange(labels) + 0.5) / labels
            values[:] = (_NEAREST * (_FARTHEST / _NEAREST) ** middle).unsqueeze(1)
        self.values = nn.Parameter(values)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the mean of the labels' values, weighed by their softmax."""
        shares = logits.movedim(1, 3).softmax(3)
        return (shares.to(self.values.dtype) @ self.values).movedim(3, 1)


@final
class Labels(nn.Module):
    """Says which label of a task is where, from a map whose makers do not learn by it.

    A 1x1 convolution with batch norm and ReLU that keeps the channels, and a 1x1 convolution. It
    has c^2 + 2 c + (c + 1) l parameters for c channels and l labels, and those of the readout.

    Args:
        task: that is predicted.
        channels: of the map.
        labels: their number, of a task that has neither classes nor shares.
    """

    def __init__(self, task: Task, channels: int, labels: int) -> None:
        super().__init__()
        self.readout = _readout(task, labels)
        self.hidden = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.logits = nn.Conv2d(channels, self.readout.labels, 1)
        nn.init.normal_(self.logits.weight, std=_STD)
        assert self.logits.bias is not None
        nn.init.zeros_(self.logits.bias)
        self._whole = task.layout != "map"

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, labels, h, w) of a map (B, channels, h, w)."""
        found: Tensor = self.logits(self.hidden(x.detach()))
        return found

    def predict(self, logits: Tensor) -> Tensor:
        """Compute what the task predicts: a map, or its mean where the task has one value."""
        found: Tensor = self.readout(logits)
        return found.mean((2, 3)) if self._whole else found


def _readout(task: Task, labels: int) -> Readout:
    if task.dtype == "int64":
        return Classes(task.channels)
    if task.values == "share":
        return Pairs(task.channels)
    return Mixed(task, labels)
