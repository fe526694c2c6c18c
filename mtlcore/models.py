"""Backbones, heads, and the model that runs a backbone with one head per task."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.data import Inputs, image_size, input_tensors, map_inputs
from mtlcore.errors import MtlError, UsageError, did_you_mean
from mtlcore.tasks import Task

__all__ = [
    "AVERAGE",
    "Backbone",
    "Boundary",
    "EarlyPrediction",
    "FeatureInfo",
    "Features",
    "Head",
    "MultiTaskModel",
    "StepContext",
    "Teacher",
    "Transition",
    "check_size",
    "count_parameters",
    "made_for",
    "under_autocast",
]


#: The name under which the averaged copy of the model teaches.
AVERAGE = "ema"


@attrs.frozen
class FeatureInfo:
    """Channels and strides of the feature maps that a head receives, in their order.

    Args:
        channels: of each map.
        strides: of each map: the height of the input divided by the height of the map.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass  # not attrs: torch.compile can follow this one
class EarlyPrediction:
    """A prediction that a backbone makes on the way, for deep supervision.

    Args:
        prediction: Raw as a head's, (B, task.channels, H / s, W / s) at any stride s, or
            (B, task.channels). Maps are resized bilinearly to the size of the target.
        weight: Factor on its loss; the loss of the head's prediction has the factor 1.
    """

    prediction: Tensor
    weight: float = 1.0


@dataclass(kw_only=True)
class Features:
    """What a backbone returns.

    Args:
        shared: maps that all tasks share, the deepest (largest stride) first.
        per_task: task name -> maps of this task alone; its head receives them after the shared
            ones.
        cut: tensors such that every path from a shared parameter to a loss crosses one of them.
            Balancers with the scope "features" compare gradients there. Leave it empty if the maps
            that heads read will do: the core then compares gradients at those (see `separated`).
        early: Task -> the predictions that the backbone makes on the way; none in evaluation mode.
            The task's own loss judges them, and the weighted sum is added to that of its head's
            prediction: balancers see one loss per task.
        terms: Name -> scalar that is added to the total loss with weight 1, outside the balancing,
            as a cross-task term is; none in evaluation mode.
    """

    shared: tuple[Tensor, ...] = ()
    per_task: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    cut: tuple[Tensor, ...] = ()
    early: Mapping[str, Sequence[EarlyPrediction]] = field(default_factory=dict)
    terms: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, task: str) -> tuple[Tensor, ...]:
        """Return the maps that the head of `task` receives: the shared ones, then its own."""
        return (*self.shared, *self.per_task.get(task, ()))

    def separated(self) -> tuple[Features, Boundary]:
        """Detach every map, so that backward passes of heads end where the backbone does.

        Returns:
            Features of detached maps for the heads, and what leads back into the backbone.
        """
        boundary = Boundary()
        shared = tuple(boundary.leaf(x, None) for x in self.shared)
        per_task = {
            task: tuple(boundary.leaf(x, task) for x in maps)
            for task, maps in self.per_task.items()
        }
        early = {
            task: tuple(
                replace(one, prediction=boundary.leaf(one.prediction, task)) for one in several
            )
            for task, several in self.early.items()
        }
        features = Features(shared=shared, per_task=per_task, early=early, terms=self.terms)
        return features, boundary


@attrs.define
class Boundary:
    """The maps at which heads were separated from the backbone.

    Args:
        maps: outputs of the backbone.
        leaves: for each map, the detached copy that heads read.
        owners: for each map, the only task that reads it; None if several do.
    """

    maps: list[Tensor] = attrs.field(factory=list)
    leaves: list[Tensor] = attrs.field(factory=list)
    owners: list[str | None] = attrs.field(factory=list)

    def leaf(self, x: Tensor, owner: str | None) -> Tensor:
        """Return the detached copy of a map, always the same one; a constant map is its own."""
        if not x.requires_grad:
            return x
        for place, known in enumerate(self.maps):
            if known is x:
                if self.owners[place] != owner:
                    self.owners[place] = None
                return self.leaves[place]
        self.maps.append(x)
        self.leaves.append(x.detach().requires_grad_())
        self.owners.append(owner)
        return self.leaves[-1]


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
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    input_multiple: int = 1
    input_kind: str = "image"

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
        """Run the heads of `tasks` and crop maps to `size`, which removes the padding."""
        predictions = {}
        for name in tasks:
            prediction: Tensor = self.head(name)(features.of(name))
            if prediction.dim() == 4 and len(size) == 2:
                prediction = prediction[:, :, : size[0], : size[1]]
            predictions[name] = prediction
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
            found.append(EarlyPrediction(prediction, early.weight))
        return found

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


def made_for(name: str, keys: Collection[str]) -> bool:
    """Return whether the path of a module or tensor contains one of these keys (see `Task.key`)."""
    return any(part in keys for part in name.split("."))


def check_size(size: Sequence[int], batch: int, backbone: Backbone) -> None:
    """Raise an error if the deepest map is a single pixel of a single sample.

    Args:
        size: height and width of the inputs; others have none.
        batch: number of samples.
        backbone: whose strides are looked at.

    Raises:
        MtlError: it is; batch norm would have a single value per channel.
    """
    stride = max(backbone.strides)
    if batch == 1 and len(size) == 2 and all(-(-side // stride) <= 1 for side in size):
        raise MtlError(
            f"data.size {list(size)} leaves a deepest map of one pixel at stride {stride}: batch "
            "norm cannot train on one sample of it; use larger images or training.batch_size >= 2"
        )


def count_parameters(parameters: Iterable[Parameter]) -> int:
    """Return the number of scalars, counting each tensor once."""
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())
