"""The model as it is deployed: from raw inputs to final values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.errors import UsageError
from mtlcore.inputs import Inputs, image_size, input_form, input_tensors, map_inputs
from mtlcore.models import MultiTaskModel
from mtlcore.tasks import Task

_LARGEST = 255  # of a byte


def activated(task: Task, raw: Tensor) -> Tensor:
    """Return final values (B, C, ...) of a task, from its head's.

    Args:
        task: with classes: their probabilities, by softmax over the channels; of shares (edges,
            saliency, multilabel): probabilities, by sigmoid; of directions: vectors of length 1;
            otherwise the values as they are, in the task's unit.
        raw: (B, C, ...), as `MultiTaskModel.predict` returns it.
    """
    if task.dtype == "int64":
        return raw.softmax(1)
    if task.values == "share":
        return raw.sigmoid()
    if task.values == "direction":
        return F.normalize(raw, dim=1)
    return raw


@final
class DeployedModel(nn.Module):
    """A model with everything around it, called with the tensors of the inputs in their order.

    It scales images of bytes, pads them to what the backbone needs by edge values, runs the heads
    of its tasks, crops their maps, and makes final values of them.

    Args:
        model: in evaluation mode.
        tasks: names of those that it predicts; none: the features that heads would read.
        inputs: of a batch of the dataset, for their form.
        kind: of the inputs, as the dataset calls it.

    Attributes:
        kind: of the inputs.
        names: of the inputs, in order.
        reads_bytes: whether the only input is an image of bytes, (B, C, H, W) uint8.
    """

    def __init__(
        self, model: MultiTaskModel, tasks: Sequence[str], inputs: Inputs, kind: str
    ) -> None:
        super().__init__()
        self.model = model
        self.tasks = tuple(tasks)
        self.kind = kind
        self.names = _names(inputs, kind)
        self.reads_bytes = kind == "image" and isinstance(inputs, Tensor) and inputs.dim() == 4
        self._form = map_inputs(lambda x: x[:0], inputs)
        self.forward = self._named_forward()  # type: ignore[method-assign]

    def of_tasks(self, tasks: Sequence[str]) -> DeployedModel:
        """Return the same model for other tasks."""
        return DeployedModel(self.model, tasks, self._form, self.kind).eval()

    def tensors(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return by name what the program is given for inputs of the dataset."""
        given = dict(zip(self.names, input_tensors(inputs), strict=True))
        if self.reads_bytes:
            return {name: _as_bytes(x) for name, x in given.items()}
        return given

    def inputs(self, tensors: dict[str, Tensor]) -> Inputs:
        """Return the inputs of the model for what the program is given."""
        given = iter([tensors[name] for name in self.names])
        inputs = map_inputs(lambda _: next(given), self._form)
        return inputs.float() / _LARGEST if self.reads_bytes else inputs

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Compute task name -> final values (B, C, H, W) or (B, C)."""
        inputs = self.inputs(dict(zip(self.names, tensors, strict=True)))
        size = image_size(inputs)
        padded = map_inputs(self._padded, inputs)
        features = self.model.features(padded, self.tasks)
        if not self.tasks:
            return {f"features_{place}": x for place, x in enumerate(features.shared)}
        predictions = self.model.predict(features, self.tasks, ())  # not cropped: see _cropped
        return {
            name: activated(self.model.tasks[name], _cropped(prediction, size))
            for name, prediction in predictions.items()
        }

    def _named_forward(self) -> Callable[..., dict[str, Tensor]]:
        """Return `forward` with a parameter for each input: a trace takes its names from there."""
        forward = self.forward

        def named(*tensors: Tensor) -> dict[str, Tensor]:
            return forward(*tensors)

        kind = Parameter.POSITIONAL_OR_KEYWORD
        named.__signature__ = Signature([Parameter(n, kind) for n in self.names])  # type: ignore[attr-defined]
        return named

    def _padded(self, x: Tensor) -> Tensor:
        """Repeat edge values as `MultiTaskModel` does, but for any size without a branch on it."""
        multiple = self.model.backbone.input_multiple
        if x.dim() != 4 or multiple == 1:
            return x
        for dimension in (2, 3):
            side = x.shape[dimension]
            padded = (side + multiple - 1) // multiple * multiple
            if not (isinstance(side, int) and side == padded):
                places = torch.arange(padded, device=x.device).clamp(max=side - 1)
                x = x.index_select(dimension, places)
        return x


def _cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the first rows and columns of a map; a slice would compare sizes that may vary."""
    if x.dim() != 4 or len(size) != 2:
        return x
    for dimension, side in ((2, size[0]), (3, size[1])):
        if not (isinstance(side, int) and side == x.shape[dimension]):
            x = x.index_select(dimension, torch.arange(side, device=x.device))
    return x


def _as_bytes(image: Tensor) -> Tensor:
    return (image * _LARGEST).round().clamp(0, _LARGEST).to(torch.uint8)


def _names(inputs: Inputs, kind: str) -> tuple[str, ...]:
    """Return a Python identifier for each tensor of a tree, by its path."""
    if isinstance(inputs, Tensor):
        paths = [kind]
    else:
        paths = [
            path if not path[:1].isdigit() else f"{kind}_{path}" for path, _ in input_form(inputs)
        ]
    names = tuple(re.sub(r"\W", "_", path) for path in paths)
    if len({*names}) < len(names):
        raise UsageError(
            f"the inputs {', '.join(paths)} of the dataset have no names of their own as inputs of "
            "a program; rename those that differ in nothing but signs"
        )
    return names
