"""A whole, checked configuration, and the components that it chooses."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from mtlcore.config.schema import (
    BackboneConfig,
    BalancingConfig,
    DataConfig,
    InitialConfig,
    TrainingConfig,
)
from mtlcore.errors import MtlError, UsageError, exit_told
from mtlcore.plugins import Component, singular
from mtlcore.tasks import Task


@attrs.frozen
class Chosen:
    """A component and the settings that it is built with.

    Args:
        component: The component.
        settings: The settings that the configuration names, converted to the types that the
            component's target takes; one that is another component is a `Chosen`.
    """

    component: Component
    settings: Mapping[str, Any]

    def make(self, *positional: Any, **extra: Any) -> Any:
        """Build the component; the positional arguments are the core's.

        Raises:
            UsageError: The component refuses the value of a setting.
            MtlError: It wants to end the program.
        """
        target = self.component.load()
        name = f"{singular(self.component.kind)} {self.component.spec.name!r}"
        settings = {
            key: value.make if isinstance(value, Chosen) else value
            for key, value in self.settings.items()
        }
        try:
            return target(*positional, **settings, **extra)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
        except SystemExit as error:
            raise MtlError(f"{name}: {exit_told(error)}") from error


@attrs.frozen(kw_only=True)
class ChosenData:
    """The data of a configuration, without what would be trained on it.

    Args:
        data: What the core itself reads from `[data]`.
        dataset: The dataset.
        tasks: The tasks, in order.
        origins: Path -> where the value comes from.
    """

    data: DataConfig
    dataset: Chosen
    tasks: tuple[Task, ...]
    origins: Mapping[str, str]


@attrs.frozen
class ChosenMetric:
    """A metric, and the task in the regions of whose classes it is computed as well.

    Args:
        metric: The component with its settings.
        regions: The task; None: there are no regions.
    """

    metric: Chosen
    regions: Task | None = None

    @property
    def component(self) -> Component:
        """The component."""
        return self.metric.component

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings that the component is built with."""
        return self.metric.settings

    def make(self, task: Task) -> Any:
        """Build the metric of a task, as `Chosen.make` does."""
        return self.metric.make(task)


@attrs.frozen(kw_only=True)
class TeacherConfig:
    """A trained run whose model teaches.

    Args:
        location: Directory or URL of the run.
        config: Its configuration.
        checkpoint: The weights of its best epoch, or the last ones.
    """

    location: str
    config: RunConfig
    checkpoint: Literal["best", "last"] = "best"


@attrs.frozen(kw_only=True)
class RunConfig:
    """A whole, checked configuration.

    Args:
        tree: Every value as TOML has it, defaults of components included.
        origins: Path -> where the value comes from.
        notes: One line each on what was replaced or dropped while merging.
        method: The name of the method.
        seed: The seed of every random number generator of the run.
        device: "auto", or a device that torch knows.
        tasks: The run's tasks, in order.
        data: What the core itself reads from `[data]`.
        dataset: The dataset.
        augmentations: The listed augmentations of training samples, in order.
        backbone: The backbone.
        rates: Factors on its learning rates.
        neck: Between backbone and heads; None: there is none.
        neck_per_task: Whether each task has a neck of its own.
        heads: Task -> its head.
        losses: Task -> its loss.
        metrics: Task -> its metrics.
        cross_task: The losses over several tasks.
        chain: The balancers, in order.
        balancing: How often, and of what, the balancer compares gradients.
        episodes: The episode sampler.
        optimizer: The optimizer.
        training: How long and how to train.
        loggers: What is told what happens.
        initial: Where the first weights come from; None: they are drawn, and all tasks are
            trained.
        freeze: Names of the parts of the model that do not learn, see `MultiTaskModel.freeze`.
        teachers: Name -> the trained run whose model teaches under it.
    """

    tree: Mapping[str, Any]
    origins: Mapping[str, str]
    notes: tuple[str, ...]
    method: str
    seed: int
    device: str
    tasks: tuple[Task, ...]
    data: DataConfig
    dataset: Chosen
    augmentations: tuple[Chosen, ...]
    backbone: Chosen
    heads: Mapping[str, Chosen]
    losses: Mapping[str, Chosen]
    metrics: Mapping[str, tuple[ChosenMetric, ...]]
    cross_task: tuple[Chosen, ...]
    chain: tuple[Chosen, ...]
    balancing: BalancingConfig
    episodes: Chosen
    optimizer: Chosen
    training: TrainingConfig
    loggers: tuple[Chosen, ...]
    initial: InitialConfig | None = None
    freeze: tuple[str, ...] = ()
    teachers: Mapping[str, TeacherConfig] = attrs.field(factory=dict)
    rates: BackboneConfig = attrs.field(factory=BackboneConfig)
    neck: Chosen | None = None
    neck_per_task: bool = False

    def resume_command(self, location: str) -> str:
        """Return the command that goes on with the run in a directory or at a URL."""
        asked = any(config.tree["plugins"] for config in (self, *self._teaching)) or self.loggers
        trust = " --trust" if asked else ""
        return f"mtl run --resume --out {shlex.quote(location)}{trust}"

    @property
    def _teaching(self) -> tuple[RunConfig, ...]:
        return tuple(teacher.config for teacher in self.teachers.values())

    @property
    def labels(self) -> tuple[Task, ...]:
        """The tasks whose labels are read: the run's, and those whose classes are regions."""
        labels = {task.name: task for task in self.tasks}
        for metric in (metric for metrics in self.metrics.values() for metric in metrics):
            if metric.regions is not None:
                labels.setdefault(metric.regions.name, metric.regions)
        return tuple(labels.values())

    @property
    def learning(self) -> tuple[str, ...]:
        """Names of the tasks that are trained; the others are only evaluated."""
        if self.initial is None or self.initial.train == "all":
            return tuple(task.name for task in self.tasks)
        return tuple(task.name for task in self.tasks if task.name in self.initial.new)
