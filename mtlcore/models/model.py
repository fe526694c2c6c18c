"""The model: a backbone, a neck or none, and one head per task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Self, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.data import TargetUnits
from mtlcore.errors import UsageError
from mtlcore.features import Boundary, EarlyPrediction, Features
from mtlcore.inputs import Inputs, image_size, map_inputs
from mtlcore.models.contracts import Backbone, Head
from mtlcore.models.freezing import Freezing, Frozen, parts_of_others, path_of
from mtlcore.models.necks import Necks
from mtlcore.tasks import Task

__all__ = ["MultiTaskModel", "count_parameters"]


class MultiTaskModel(nn.Module):
    """A backbone with one head per task, and a neck between them or none.

    Args:
        tasks: of the model, in their order.
        backbone: made for these tasks.
        heads: task name -> head, made for the features of the neck if there is one.
        neck: between backbone and heads.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: Backbone,
        heads: Mapping[str, Head],
        neck: Necks | None = None,
    ) -> None:
        super().__init__()
        self.tasks = {task.name: task for task in tasks}
        self.backbone = backbone
        self.neck = neck
        self.heads = nn.ModuleDict({task.key: heads[task.name] for task in tasks})
        self.units = nn.ModuleDict(
            {task.key: TargetUnits(task.channels) for task in tasks if task.standardise}
        )
        self._freezing = Freezing()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules except frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for module in self._freezing.modules:
            module.train(False)
        return self

    def freeze(self, parts: Iterable[str]) -> Frozen:
        """Freeze parts of the model, in addition to those that are frozen already.

        Parameters get `requires_grad = False`, and modules stay in evaluation mode: batch norm uses
        its running statistics and leaves them alone, dropout is off.

        Args:
            parts: names of modules and parameters, such as "backbone", "backbone.stem" or
                "heads.depth". What is made for a task is named by the task or by its key.

        Returns:
            What this call froze, for `thaw`.

        Raises:
            UsageError: there is no such part.
        """
        names = {task.key: task.name for task in self.tasks.values()}
        frozen = self._freezing.freeze(self, [path_of(self, part, names) for part in parts])
        self.train(self.training)
        return frozen

    def thaw(self, frozen: Frozen) -> None:
        """Let learn again what a call of `freeze` froze; what was frozen before it stays so."""
        self._freezing.thaw(self, frozen)
        self.train(self.training)

    def parts_of_others(self, learning: Iterable[str]) -> list[str]:
        """Return the names of the outermost parts that are not made for one of these tasks."""
        return parts_of_others(self, {self.tasks[name].key for name in learning})

    @property
    def changes_of_freezing(self) -> int:
        """How often `freeze` and `thaw` were called."""
        return self._freezing.changes

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether `freeze` has left nothing that tasks share in the backbone to learn."""
        own = {id(p) for task in self.tasks for p in self.backbone.task_parameters(task)}
        shared = [p for p in self.backbone.parameters() if id(p) not in own]
        frozen = any(name.startswith("backbone.") for name in self._freezing.parameters)
        return frozen and not any(p.requires_grad for p in shared)

    def is_frozen(self, part: nn.Module) -> bool:
        """Return whether `freeze` froze a module of the model as a whole."""
        return self._freezing.holds(part)

    def frozen_tensors(self) -> list[Tensor]:
        """Return the parameters that `freeze` froze, and the buffers of frozen modules."""
        return self._freezing.tensors(self)

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
        """Compute what heads read, of images padded to `input_multiple` by edge values."""
        return self.separable_features(inputs, tasks, separate=False)[0]

    def separable_features(
        self, inputs: Inputs, tasks: Sequence[str], *, separate: bool
    ) -> tuple[Features, Boundary | None]:
        """Compute what heads read, and separate what tasks share from what is theirs.

        Args:
            inputs: of a batch.
            tasks: names of the tasks whose heads will run.
            separate: whether to detach the maps at which sharing ends, unless the backbone states
                a cut.

        Returns:
            The features, and where they were detached; None if they were not.
        """
        if self.backbone.input_multiple > 1:
            inputs = map_inputs(self._padded, inputs)
        features: Features = self.backbone(inputs, tasks)
        if self.neck is not None and self.neck.is_shared:
            features = self.neck(features, tasks)
        boundary = None
        if separate and not features.cut:
            features, boundary = features.separated()
        if self.neck is not None and not self.neck.is_shared:
            features = self.neck(features, tasks)
        return features, boundary

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
            if self.tasks[name].standardise:
                prediction = self._in_unit(name, prediction)
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
        return cast(Head, self.heads[self.tasks[task].key])

    def reset_heads(self) -> list[Parameter]:
        """Re-initialise all heads and necks; return their parameters."""
        if self.neck is not None:
            self.neck.reset_parameters()
        for task in self.tasks:
            self.head(task).reset_parameters()
        necks = [] if self.neck is None else [*self.neck.parameters()]
        return [*necks, *self.heads.parameters()]

    def task_parameters(self, task: str) -> list[Parameter]:
        """Return the parameters that only this task's loss reaches: of backbone, neck and head."""
        neck = () if self.neck is None else self.neck.task_parameters(task)
        return [*self.backbone.task_parameters(task), *neck, *self.head(task).parameters()]

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last layer that tasks share, of the neck or the backbone."""
        if self.neck is not None and self.neck.is_shared:
            return self.neck.last_parameters()
        return self.backbone.last_shared_parameters()

    def last_blocks(self, count: int) -> list[Parameter]:
        """Return the shared parameters of the last blocks before the heads.

        A neck that all tasks share is the last block of a model that has one.

        Args:
            count: Number of blocks; of fewer, all are returned.

        Raises:
            UsageError: The backbone names no blocks.
        """
        blocks = [*self.backbone.trunk_blocks()]
        if not blocks:
            raise UsageError(
                f"balancer.depth: {type(self.backbone).__name__} does not name its blocks; set "
                'balancer.depth = "features", or leave it out'
            )
        if self.neck is not None and self.neck.is_shared:
            blocks.append([*self.neck.parameters()])
        shared = {id(p) for p in self.shared_parameters()}
        # Not counted: what belongs to single tasks altogether.
        of_tasks = [[p for p in block if id(p) in shared] for block in blocks]
        return [p for block in [b for b in of_tasks if b][-count:] for p in block]

    def shared_parameters(self) -> list[Parameter]:
        """Return the parameters that belong to no single task, in order of registration."""
        own = {id(p) for task in self.tasks for p in self.task_parameters(task)}
        return [p for p in self.parameters() if id(p) not in own]


def count_parameters(parameters: Iterable[Parameter]) -> int:
    """Return the number of scalars, counting each tensor once."""
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())
