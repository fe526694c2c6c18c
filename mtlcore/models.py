"""Backbones, heads, and the model that runs a backbone with one head per task."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, Self, cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.data import TargetUnits
from mtlcore.errors import UsageError, did_you_mean
from mtlcore.features import EarlyPrediction, Features
from mtlcore.inputs import Inputs, image_size, map_inputs
from mtlcore.tasks import Task

__all__ = [
    "AVERAGE",
    "Backbone",
    "Head",
    "MultiTaskModel",
    "StepContext",
    "Transition",
    "count_parameters",
    "made_for",
]


#: The name under which the averaged copy of the model teaches.
AVERAGE = "ema"


class StepContext(Protocol):
    """What backbones, heads and cross-task losses may know of a step that was taken."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks of the run."""

    @property
    def present(self) -> tuple[str, ...]:
        """The tasks that had a loss in the step."""

    @property
    def losses(self) -> Mapping[str, float]:
        """Mean loss per present task, that of early predictions included."""

    @property
    def step(self) -> int:
        """Number of the step, from 0."""

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""

    @property
    def progress(self) -> float:
        """The fraction of the run that was done before the step, 0 to 1."""

    @property
    def generator(self) -> torch.Generator | None:
        """The only source of randomness, on the CPU; the same on every rank."""


@attrs.frozen(kw_only=True)
class Transition:
    """What a backbone changed in itself at a point of the training.

    Args:
        reset: names, within the backbone, of the parameters that it re-initialised; the optimizer
            drops their state.
        reset_heads: whether the heads are re-initialised as well.
        reset_balancer: whether the balancer is reset as well.
    """

    reset: tuple[str, ...] = ()
    reset_heads: bool = False
    reset_balancer: bool = False


class Backbone(nn.Module, abc.ABC):
    """A network from inputs to features, made as `Backbone(tasks, **settings)`.

    Attributes:
        out_channels: channels of each map in `Features.of(task)`; the same for every task.
        strides: strides of the same maps.
        input_multiple: number that the height and width of an image must be multiples of;
            `MultiTaskModel` pads to it.
        input_kind: what it reads: "image", "vector", "tokens" or any other word that datasets call
            their inputs by.
        first_weights: names of settings that say with which weights it begins, such as a path; they
            keep their defaults where the weights of a checkpoint follow.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    input_multiple: int = 1
    input_kind: str = "image"
    first_weights: tuple[str, ...] = ()

    @abc.abstractmethod
    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Compute the features.

        Args:
            inputs: images (B, 3, H, W), vectors (B, F), or any other tensor or tree of tensors that
                the dataset makes of a batch.
            tasks: names of the tasks whose heads will run; what only other tasks need may be
                left out.

        Returns:
            The features. In evaluation mode (`self.training` is False) they hold no early
            predictions and no terms: nobody would look at them.
        """

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters that only this task's loss can reach; all others are shared."""
        return ()

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the last shared parameters before the heads, such as those of the last layer.

        Balancers with the scope "last_shared" compare the tasks' gradients at these parameters.
        If it returns none, such balancers are refused.
        """
        return ()

    def facts(self) -> Mapping[str, str]:
        """Return what people should know of the network beyond its settings; here, nothing.

        Such as where its weights came from (`weights`, `weights_sha256`), their `licence` and what
        inputs are normalised by. `run.json` keeps them, and `mtl show` prints them.
        """
        return {}

    def at_progress(self, fraction: float) -> Transition | None:
        """Enter the next phase if it is time; called before every step.

        Whether a phase has begun must be part of the state (a buffer, or `get_extra_state` with
        JSON values).

        Args:
            fraction: part of the run that is done, 0 to 1.

        Returns:
            What the backbone changed in itself, at the one step at which it does; otherwise None.
        """
        return None

    def after_step(self, context: StepContext) -> None:
        """Update the state after a step that was taken, on every process; here, do nothing.

        A skipped step does not call it. What it changes must be part of the state, as buffers or
        in `get_extra_state`, and alike on every process. Steps call it only where a class
        overrides it.

        Args:
            context: What is known of the step.
        """


class Head(nn.Module, abc.ABC):
    """A network from a task's features to its prediction: `Head(task, features, **settings)`.

    `features` is a `FeatureInfo`. Predictions are raw (logits, unnormalised normals) and have the
    resolution of the padded input.
    """

    @abc.abstractmethod
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Compute the prediction.

        Args:
            features: maps (B, C, H / stride, W / stride) or vectors (B, C), as the `FeatureInfo`
                says.

        Returns:
            (B, task.channels, H, W) for a task with the layout "map", otherwise
            (B, task.channels).
        """

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Re-initialise all parameters and buffers, as the constructor does."""

    def after_step(self, context: StepContext) -> None:
        """Update the state after a step that was taken, on every process; here, do nothing.

        A skipped step does not call it. What it changes must be part of the state, as buffers or
        in `get_extra_state`, and alike on every process. Steps call it only where a class
        overrides it.

        Args:
            context: What is known of the step.
        """


class MultiTaskModel(nn.Module):
    """A backbone with one head per task.

    Args:
        tasks: of the model, in their order.
        backbone: made for these tasks.
        heads: task name -> head.
    """

    def __init__(
        self, tasks: Sequence[Task], backbone: Backbone, heads: Mapping[str, Head]
    ) -> None:
        super().__init__()
        self.tasks = {task.name: task for task in tasks}
        self.backbone = backbone
        self.heads = nn.ModuleDict({task.key: heads[task.name] for task in tasks})
        self.units = nn.ModuleDict(
            {task.key: TargetUnits(task.channels) for task in tasks if task.standardise}
        )
        self._frozen: list[nn.Module] = []
        self._frozen_parameters: set[str] = set()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules except frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.train(False)
        return self

    def freeze(self, parts: Iterable[str]) -> None:
        """Freeze parts of the model, in addition to those that are frozen already.

        Parameters get `requires_grad = False`, and modules stay in evaluation mode: batch norm uses
        its running statistics and leaves them alone, dropout is off.

        Args:
            parts: names of modules and parameters, such as "backbone", "backbone.stem" or
                "heads.depth". What is made for a task is named by the task or by its key.

        Raises:
            UsageError: there is no such part.
        """
        for part in parts:
            path = self._path(part)
            module = dict(self.named_modules(remove_duplicate=False)).get(path)
            if module is None:
                found = {path: self.get_parameter(path)}
            else:
                named = module.named_parameters(remove_duplicate=False)
                found = {f"{path}.{name}": parameter for name, parameter in named}
                self._frozen.append(module)
            for name, parameter in found.items():
                parameter.requires_grad_(False)
                self._frozen_parameters.add(name)
        self.train(self.training)

    def parts_of_others(self, learning: Iterable[str]) -> list[str]:
        """Return the names of all parts that are not made for one of these tasks.

        A module or parameter is made for a task if its path contains `Task.key`.

        Args:
            learning: names of the tasks.
        """
        keys = {self.tasks[name].key for name in learning}
        names = [name for name, _ in [*self.named_modules(), *self.named_parameters()]]
        # A module is live if it is made for one of the tasks, or holds something that is.
        live = {""}
        for name in names:
            if made_for(name, keys):
                parts = name.split(".")
                live.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
        others = [name for name in names if name not in live]
        # Of what lies in one another, the outermost.
        return [name for name in others if name.rpartition(".")[0] in live]

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether `freeze` has left nothing that tasks share in the backbone to learn."""
        own = {id(p) for task in self.tasks for p in self.backbone.task_parameters(task)}
        shared = [p for p in self.backbone.parameters() if id(p) not in own]
        frozen = any(name.startswith("backbone.") for name in self._frozen_parameters)
        return frozen and not any(p.requires_grad for p in shared)

    def is_frozen(self, part: nn.Module) -> bool:
        """Return whether `freeze` froze a module of the model as a whole."""
        return any(part is inner for module in self._frozen for inner in module.modules())

    def frozen_tensors(self) -> list[Tensor]:
        """Return the parameters that `freeze` froze, and the buffers of frozen modules."""
        buffers = [buffer for module in self._frozen for buffer in module.buffers()]
        found = [*map(self.get_parameter, sorted(self._frozen_parameters)), *buffers]
        return list({id(tensor): tensor for tensor in found}.values())

    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Predict the named tasks at the size of the inputs.

        Args:
            inputs: of a batch.
            tasks: names of the tasks to predict; other heads do not run.

        Returns:
            Task name -> (B, task.channels, H, W) or (B, task.channels).
        """
        return self.predict(self.features(inputs, tasks), tasks, image_size(inputs))

    def features(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Compute the backbone's features, of images padded to `input_multiple` by edge values."""
        if self.backbone.input_multiple > 1:
            inputs = map_inputs(self._padded, inputs)
        features: Features = self.backbone(inputs, tasks)
        return features

    def _padded(self, inputs: Tensor) -> Tensor:
        if inputs.dim() != 4:
            return inputs
        multiple = self.backbone.input_multiple
        height, width = inputs.shape[2:]
        bottom, right = -height % multiple, -width % multiple
        if bottom or right:
            inputs = F.pad(inputs, (0, right, 0, bottom), mode="replicate")
        return inputs

    def predict(
        self, features: Features, tasks: Sequence[str], size: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """Run heads, crop maps to `size`, which removes the padding; values are in tasks' units."""
        predictions = {}
        for name in tasks:
            prediction: Tensor = self.head(name)(features.of(name))
            if prediction.dim() == 4 and len(size) == 2:
                prediction = prediction[:, :, : size[0], : size[1]]
            predictions[name] = self._in_unit(name, prediction)
        return predictions

    def early(self, features: Features, task: str, size: tuple[int, ...]) -> list[EarlyPrediction]:
        """Return a task's early predictions in fp32; maps are resized to `size` and cropped.

        Args:
            features: That the backbone returned.
            task: The name of the task.
            size: Height and width of the target, without padding.
        """
        multiple = self.backbone.input_multiple
        padded = tuple(side + -side % multiple for side in size)
        found = []
        for early in features.early.get(task, ()):
            prediction = early.prediction.float()
            if prediction.dim() == 4:
                if prediction.shape[2:] != padded:
                    prediction = F.interpolate(
                        prediction, padded, mode="bilinear", align_corners=False
                    )
                prediction = prediction[:, :, : size[0], : size[1]]
            found.append(EarlyPrediction(self._in_unit(task, prediction), early.weight))
        return found

    def units_of(self, task: str) -> TargetUnits | None:
        """Return the units of a task; None if its values are learnt as they are."""
        if not self.tasks[task].standardise:
            return None
        return cast(TargetUnits, self.units[self.tasks[task].key])

    def _in_unit(self, task: str, prediction: Tensor) -> Tensor:
        units = self.units_of(task)
        return prediction if units is None else units(prediction)

    def head(self, task: str) -> Head:
        """Return the head of a task."""
        head = self.heads[self.tasks[task].key]
        assert isinstance(head, Head)
        return head

    def _path(self, part: str) -> str:
        """Return the path of a named part, in which tasks stand under their keys."""
        modules = [name for name, _ in self.named_modules(remove_duplicate=False) if name]
        parameters = [name for name, _ in self.named_parameters(remove_duplicate=False)]
        paths = dict.fromkeys([*modules, *parameters])
        names = {task.key: task.name for task in self.tasks.values()}
        shown = {".".join(names.get(x, x) for x in path.split(".")): path for path in paths}
        if part in paths or part in shown:
            return part if part in paths else shown[part]
        inside = part
        while inside and inside not in shown:
            inside = inside.rpartition(".")[0]
        there = [name for name in shown if name.rpartition(".")[0] == inside]
        raise UsageError(
            f"model.freeze: the model has no part {part!r}{did_you_mean(part, shown)} "
            f"({inside or 'it'} holds: {', '.join(there)})"
        )

    def task_parameters(self, task: str) -> list[Parameter]:
        """Return the parameters that only this task's loss reaches, in backbone and head."""
        return [*self.backbone.task_parameters(task), *self.head(task).parameters()]

    def shared_parameters(self) -> list[Parameter]:
        """Return the parameters that belong to no single task, in order of registration."""
        own = {id(p) for task in self.tasks for p in self.task_parameters(task)}
        return [p for p in self.parameters() if id(p) not in own]


def made_for(name: str, keys: Collection[str]) -> bool:
    """Return whether the path of a module or tensor contains one of these keys (see `Task.key`)."""
    return any(part in keys for part in name.split("."))


def count_parameters(parameters: Iterable[Parameter]) -> int:
    """Return the number of scalars, counting each tensor once."""
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())
