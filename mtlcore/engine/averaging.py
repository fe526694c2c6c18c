"""The averaged copy of a model."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor, nn

from mtlcore.models import MultiTaskModel
from mtlcore.optimizers import copy_all

_Pair = tuple[list[Tensor], list[Tensor]]


@final
class AveragedModel:
    """An exponential moving average of a model's parameters; everything else is the model's.

    Args:
        source: The model that learns.
        decay: Factor on the average in an update, above 0 and below 1.

    Attributes:
        model: The averaged copy, frozen and in evaluation mode.
    """

    def __init__(self, source: MultiTaskModel, decay: float) -> None:
        self.model = copy.deepcopy(source).requires_grad_(False).eval()
        self._decay = decay
        self._parameters: _Pair = ([*source.parameters()], [*self.model.parameters()])
        self._buffers: _Pair = ([*source.buffers()], [*self.model.buffers()])
        self._with_state = [
            (one, other)
            for one, other in zip(source.modules(), self.model.modules(), strict=True)
            if type(one).get_extra_state is not nn.Module.get_extra_state
        ]

    def restart(self) -> None:
        """Start anew from the model as it is."""
        copy_all(*self._parameters)
        self.copy_buffers()

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model after a step."""
        source, average = self._parameters
        torch._foreach_lerp_(average, source, 1 - self._decay)
        self.copy_buffers()

    def copy_buffers(self) -> None:
        """Copy what is not averaged: buffers, and states that are no tensors."""
        copy_all(*self._buffers)
        for one, other in self._with_state:
            other.set_extra_state(copy.deepcopy(one.get_extra_state()))
