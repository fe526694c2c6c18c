"""Teachers: frozen models that losses and datasets may ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import final

import torch
from torch import Tensor

from mtlcore.features import Features
from mtlcore.inputs import Inputs, image_size, input_tensors
from mtlcore.models import MultiTaskModel
from mtlcore.tasks import Task

__all__ = ["Teacher", "under_autocast"]


@final
class Teacher:
    """A frozen model to learn from: in evaluation mode, without gradients.

    It is no `nn.Module`, so that a loss that keeps one has none of its parameters.

    Args:
        model: That teaches; it is frozen here.
        dtype: Arithmetic of the model under autocast; None: none but its own.

    Attributes:
        tasks: Name -> task that it predicts.
    """

    def __init__(self, model: MultiTaskModel, dtype: torch.dtype | None = None) -> None:
        self._model, self._dtype = model.requires_grad_(False).eval(), dtype
        self.tasks: Mapping[str, Task] = model.tasks

    @torch.no_grad()
    def predict(self, inputs: Inputs, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the predictions of the named tasks at the inputs' size, in fp32.

        Args:
            inputs: On the run's device, as in `MultiTaskModel.forward`.
            tasks: Among the names of `tasks`.
        """
        return self._run(inputs, tasks)[1]

    @torch.no_grad()
    def features(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Return the backbone's features, for losses that compare these.

        Args:
            inputs: As in `predict`.
            tasks: As in `predict`.
        """
        return self._run(inputs, tasks)[0]

    def _run(self, inputs: Inputs, tasks: Sequence[str]) -> tuple[Features, dict[str, Tensor]]:
        with under_autocast(inputs, self._dtype):
            features = self._model.features(inputs, tasks)
            predictions = self._model.predict(features, tasks, image_size(inputs))
        if self._dtype is not None:
            predictions = {task: prediction.float() for task, prediction in predictions.items()}
        return features, predictions


def under_autocast(inputs: Inputs, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context in which a model computes in another arithmetic on the inputs' device."""
    # A disabled autocast still costs as much as a small layer.
    if dtype is None:
        return nullcontext()
    return torch.autocast(input_tensors(inputs)[0].device.type, dtype)
