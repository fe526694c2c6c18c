"""The necks of a model: one for all tasks, or one for each."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import final

from torch import nn
from torch.nn import Parameter

from mtlcore.features import FeatureInfo, Features
from mtlcore.models.contracts import Neck
from mtlcore.tasks import Task

__all__ = ["NeckPerTask", "Necks", "SharedNeck"]


class Necks(nn.Module, abc.ABC):
    """The necks of a model.

    Attributes:
        info: What heads receive.
        is_shared: Whether they are part of what tasks share. If not, they are parts of a task, as
            heads are, and what tasks share ends at the backbone.
    """

    info: FeatureInfo
    is_shared: bool

    def reset_parameters(self) -> None:
        """Re-initialise every neck."""
        for neck in self.children():
            assert isinstance(neck, Neck)
            neck.reset_parameters()

    @abc.abstractmethod
    def forward(self, features: Features, tasks: Sequence[str]) -> Features:
        """Compute the features that heads read from those of the backbone.

        Args:
            features: of the backbone.
            tasks: names of the tasks whose heads will run.
        """

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters that only this task's loss reaches; all others are shared."""
        return ()

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last layer that tasks share, if it is here."""
        return ()


@final
class SharedNeck(Necks):
    """One neck for all tasks.

    Where the backbone gives a task maps of its own, the neck runs once for each task, with the same
    weights.

    Args:
        neck: The neck.
    """

    is_shared = True

    def __init__(self, neck: Neck) -> None:
        super().__init__()
        self.shared = neck
        self.info = FeatureInfo.of(neck)

    def forward(self, features: Features, tasks: Sequence[str]) -> Features:
        """Compute the shared maps, or those of each task.

        A cut that the backbone states is dropped: the neck's parameters are shared and lie behind
        it.
        """
        if not features.per_task:
            return replace(features, shared=self.shared(features.shared), cut=())
        own = {task: self.shared(features.of(task)) for task in tasks}
        return replace(features, shared=(), per_task=own, cut=())

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the neck's last layer."""
        return self.shared.last_parameters()


@final
class NeckPerTask(Necks):
    """A neck for each task, which only its task's loss trains.

    Args:
        tasks: Of the model.
        make: Makes a neck.
    """

    is_shared = False

    def __init__(self, tasks: Sequence[Task], make: Callable[[], Neck]) -> None:
        super().__init__()
        made = {task.key: make() for task in tasks}
        self._keys = {task.name: task.key for task in tasks}
        for key, neck in made.items():
            self.add_module(key, neck)
        self.info = FeatureInfo.of(next(iter(made.values())))

    def forward(self, features: Features, tasks: Sequence[str]) -> Features:
        """Compute the maps of each task; a cut that the backbone states holds on."""
        own = {task: self.get_submodule(self._keys[task])(features.of(task)) for task in tasks}
        return replace(features, shared=(), per_task=own)

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's neck."""
        return self.get_submodule(self._keys[task]).parameters()
