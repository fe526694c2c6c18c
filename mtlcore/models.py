"""Backbones announce what they give, heads read it, and one model runs both for the tasks asked."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import attrs
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import MtlError
from mtlcore.tasks import Task

__all__ = [
    "Backbone",
    "FeatureInfo",
    "Features",
    "Head",
    "MultiTaskModel",
    "Transition",
    "check_size",
    "count_parameters",
    "made_for",
]


@attrs.frozen
class FeatureInfo:
    """What a backbone announces about the maps that every head receives, in their order.

    Args:
        channels: of each map.
        strides: of each map: input side divided by map side.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(kw_only=True)  # not attrs: torch.compile can follow this one
class Features:
    """What a backbone returns.

    Args:
        shared: maps that all tasks share, the deepest (largest stride) first.
        per_task: per task the maps that are its own, appended to the shared ones for its head.
        cut: the tensors that every path from shared parameters to a loss crosses; empty where
            the backbone has no such place, and balancing on features is refused then.
    """

    shared: tuple[Tensor, ...] = ()
    per_task: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    cut: tuple[Tensor, ...] = ()

    def of(self, task: str) -> tuple[Tensor, ...]:
        """The maps that the head of `task` receives, as announced in `out_channels`."""
        return (*self.shared, *self.per_task.get(task, ()))


@attrs.frozen(kw_only=True)
class Transition:
    """What a backbone changed in itself at a point of the training.

    Args:
        reset: names (in the backbone) of parameters it re-initialised; the optimizer forgets them.
        reset_heads: whether the heads start anew as well.
        reset_balancer: whether the balancer is reset as well.
    """

    reset: tuple[str, ...] = ()
    reset_heads: bool = False
    reset_balancer: bool = False


class Backbone(nn.Module, abc.ABC):
    """Turns inputs into features: `Backbone(tasks, **settings)`.

    Attributes:
        out_channels: channels of each map in `Features.of(task)`, the same for every task.
        strides: their strides.
        input_multiple: the sides of an input must be multiples of this; the model pads.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    input_multiple: int = 1

    @abc.abstractmethod
    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Features of `inputs` (B, C, H, W) for the named tasks; others need not be computed."""

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """The parameters that only this task's loss can reach; all others are shared."""
        return ()

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """The shared parameters nearest to the heads, such as the last layer of the trunk.

        Some balancers compare the tasks' gradients there alone (their scope is "last_shared").
        None: they are refused.
        """
        return ()

    def at_progress(self, fraction: float) -> Transition | None:
        """Called before every step with the part of the run done, 0 to 1.

        A backbone with phases changes itself here, once, and says what it changed. Whether it
        has done so must be part of its state (a buffer, or `get_extra_state` as JSON).
        """
        return None


class Head(nn.Module, abc.ABC):
    """Turns a task's features into its prediction: `Head(task, features, **settings)`.

    `features` is a `FeatureInfo`. Predictions are raw (logits, unnormalised normals) and have
    the resolution of the (padded) input.
    """

    @abc.abstractmethod
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps as announced -> (B, task.channels, H, W), or (B, task.channels) without maps."""

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Draw all parameters anew, as in construction."""


class MultiTaskModel(nn.Module):
    """A backbone with one head per task.

    Args:
        tasks: in the order of the configuration.
        backbone: made for these tasks.
        heads: per task name its head.
    """

    def __init__(
        self, tasks: Sequence[Task], backbone: Backbone, heads: Mapping[str, Head]
    ) -> None:
        super().__init__()
        self.tasks = {task.name: task for task in tasks}
        self.backbone = backbone
        self.heads = nn.ModuleDict({task.key: heads[task.name] for task in tasks})
        self._frozen: list[nn.Module] = []

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.train(False)
        return self

    def freeze(self, learning: Iterable[str]) -> None:
        """Let only the parts made for these tasks learn: what `Task.key` stands in the name of.

        All other parameters need no gradient any more, and modules without such a part stay in
        evaluation mode: batch norm uses its running statistics and keeps them, dropout is off.

        Args:
            learning: names of tasks.
        """
        keys = {self.tasks[name].key for name in learning}
        for name, parameter in self.named_parameters():
            if not made_for(name, keys):
                parameter.requires_grad_(False)
        names = [name for name, _ in [*self.named_modules(), *self.named_parameters()]]
        # A module is live if it is made for one of the tasks, or holds something that is.
        live = {""}
        for name in names:
            if made_for(name, keys):
                parts = name.split(".")
                live.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
        self._frozen = [module for path, module in self.named_modules() if path not in live]
        self.train(self.training)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Predictions of the named tasks at the inputs' size."""
        return self.predict(self.features(inputs, tasks), tasks, tuple(inputs.shape[2:]))

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """The backbone's features; images are padded (edge values) to its multiple first."""
        if inputs.dim() == 4:
            multiple = self.backbone.input_multiple
            height, width = inputs.shape[2:]
            bottom, right = -height % multiple, -width % multiple
            if bottom or right:
                inputs = F.pad(inputs, (0, right, 0, bottom), mode="replicate")
        features: Features = self.backbone(inputs, tasks)
        return features

    def predict(
        self, features: Features, tasks: Sequence[str], size: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """Run the heads of `tasks` only and cut what was padded off."""
        predictions = {}
        for name in tasks:
            prediction: Tensor = self.head(name)(features.of(name))
            if prediction.dim() == 4:
                prediction = prediction[:, :, : size[0], : size[1]]
            predictions[name] = prediction
        return predictions

    def head(self, task: str) -> Head:
        """The head of a task."""
        head = self.heads[self.tasks[task].key]
        assert isinstance(head, Head)
        return head

    def task_parameters(self, task: str) -> list[Parameter]:
        """What only this task's loss reaches: its head and its part of the backbone."""
        return [*self.backbone.task_parameters(task), *self.head(task).parameters()]

    def shared_parameters(self) -> list[Parameter]:
        """Everything else, in order of registration."""
        own = {id(p) for task in self.tasks for p in self.task_parameters(task)}
        return [p for p in self.parameters() if id(p) not in own]


def made_for(name: str, keys: Collection[str]) -> bool:
    """Whether a module or tensor is of one of these tasks: a `Task.key` is part of its path."""
    return any(part in keys for part in name.split("."))


def check_size(size: Sequence[int], batch: int, backbone: Backbone) -> None:
    """Refuse an input so small that the deepest map is one pixel of one sample.

    Raises:
        MtlError: batch norm has nothing to normalise over there.
    """
    stride = max(backbone.strides)
    if batch == 1 and size and all(-(-side // stride) <= 1 for side in size):
        raise MtlError(
            f"data.size {list(size)} leaves a deepest map of one pixel at stride {stride}: batch "
            "norm cannot train on one sample of it; use larger images or training.batch_size >= 2"
        )


def count_parameters(parameters: Iterable[Parameter]) -> int:
    """Number of scalars, each tensor counted once."""
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())
