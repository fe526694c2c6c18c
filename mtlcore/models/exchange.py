"""Networks of several tasks that run side by side and exchange their maps on the way.

Soft sharing gives each task a network of its own and mixes the maps of
all of them after every stage. A backbone says where that may be done by `exchange_points`;
`ExchangingBackbone` runs one per task up to such a point, mixes, and lets them go on.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Annotated, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import EarlyPrediction, Features
from mtlcore.inputs import Inputs
from mtlcore.models.contracts import Backbone, ExchangePoint
from mtlcore.models.lockstep import Lockstep
from mtlcore.models.wrapping import WrappingBackbone
from mtlcore.ranges import Nested, Range
from mtlcore.tasks import Task

__all__ = ["BackbonePerTask", "ExchangingBackbone", "Places", "as_it_was", "as_map"]

#: The setting that is the backbone of which each task gets one.
BackbonePerTask: TypeAlias = Annotated[Callable[[Sequence[Task]], Backbone], Nested("backbones")]
#: The setting that says after which of a backbone's stages maps are exchanged.
Places: TypeAlias = tuple[Annotated[int, Range(ge=-1000, le=1000)], ...] | None


class ExchangingBackbone(WrappingBackbone, abc.ABC):
    """A network for each task, whose maps are exchanged after the stages.

    Features are those of the task's network; none are shared, and there is no cut: maps of several
    strides may reach the heads, past the last exchange.

    Args:
        tasks: of the run.
        backbone: makes the network of one task.
        exchange_at: numbers of the stages after which maps are exchanged; None: after all.

    Attributes:
        points: where maps are exchanged, in the network of the first task; those of the others are
            alike.

    Raises:
        UsageError: the backbone has no such stages, or none at all.
    """

    reads_through = "backbone"
    networks: nn.ModuleDict

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: Callable[[Sequence[Task]], Backbone],
        exchange_at: Sequence[int] | None,
    ) -> None:
        super().__init__()
        networks = {task.key: backbone([task]) for task in tasks}
        self._keys = {task.name: task.key for task in tasks}
        self.networks = nn.ModuleDict(networks)
        one = self._network(tasks[0].name)
        for name in ("out_channels", "strides", "main_map", "input_multiple", "input_kind"):
            setattr(self, name, getattr(one, name))
        self._places = _chosen(type(one).__name__, len(one.exchange_points()), exchange_at)

    @property
    def points(self) -> Sequence[ExchangePoint]:
        """Where maps are exchanged, in the network of the first task."""
        return self._points(next(iter(self._keys)))

    @abc.abstractmethod
    def exchange(
        self, number: int, maps: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """Mix the maps of all tasks.

        Args:
            number: of the point among `points`.
            maps: task -> its network's map there, for all tasks of the run in their order.
            wanted: the tasks whose networks go on from there.

        Returns:
            Task that is wanted -> the map with which its network goes on, of the same shape.
        """

    @abc.abstractmethod
    def exchange_parameters(self, number: int, task: str) -> Iterable[Parameter]:
        """Return what `exchange` uses at a point for what it returns for this task alone."""

    def finish(
        self, task: str, maps: tuple[Tensor, ...], exchanged: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Compute what the head of a task reads; here, what its network returned.

        Args:
            task: its name.
            maps: that its network returned.
            exchanged: what `exchange` returned for the task, point by point.
        """
        return maps

    def finish_parameters(self, task: str) -> Iterable[Parameter]:
        """Return what `finish` uses for this task alone; here, nothing."""
        return ()

    # The networks run in threads, which a compiler does not follow.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Compute the features; what only tasks that are not asked for need is left out."""
        found, exchanged = self._run(inputs, tasks)
        early: dict[str, Sequence[EarlyPrediction]] = {}
        terms: dict[str, Tensor] = {}
        for task, features in found.items():
            early |= features.early
            terms |= {f"{name} of {task}": term for name, term in features.terms.items()}
        maps = {
            task: self.finish(task, features.of(task), exchanged[task])
            for task, features in found.items()
        }
        return Features(per_task=maps, early=early, terms=terms)

    def wrapped(self) -> Sequence[Backbone]:
        """Return the networks of all tasks."""
        return [self._network(task) for task in self._keys]

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return what comes after the last exchange: only this task's loss reaches it."""
        last = self._places[-1]
        before = {
            id(parameter)
            for point in self._network(task).exchange_points()[: last + 1]
            for parameter in point.parameters
        }
        later = (p for p in self._network(task).parameters() if id(p) not in before)
        own = self.exchange_parameters(len(self._places) - 1, task)
        return chain(later, own, self.finish_parameters(task))

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the weights, of all networks, that made the maps of the last exchange."""
        weights = (self._points(task)[-1].weight for task in self._keys)
        return [weight for weight in weights if weight is not None]

    def _network(self, task: str) -> Backbone:
        network = self.networks[self._keys[task]]
        assert isinstance(network, Backbone)
        return network

    def _points(self, task: str) -> Sequence[ExchangePoint]:
        points = self._network(task).exchange_points()
        return [points[place] for place in self._places]

    def _run(
        self, inputs: Inputs, tasks: Sequence[str]
    ) -> tuple[dict[str, Features], dict[str, list[Tensor]]]:
        """Return the features of each task's network, and what it received in every exchange."""
        exchanged: dict[str, list[Tensor]] = {task: [] for task in self._keys}
        last = len(self._places) - 1
        with Lockstep[Features]() as networks:
            maps = {
                task: networks.start(
                    task,
                    partial(self._network(task), inputs, [task]),
                    self._points(task),
                )
                for task in self._keys
            }
            for number in range(last):
                mixed = self.exchange(number, maps, [*self._keys])
                for task, x in mixed.items():
                    exchanged[task].append(x)
                maps = {task: networks.go_on(task, x) for task, x in mixed.items()}
            mixed = self.exchange(last, maps, [task for task in self._keys if task in tasks])
            found = {task: networks.end(task, mixed[task]) for task in tasks}
        return found, {task: [*exchanged[task], mixed[task]] for task in tasks}


def as_map(x: Tensor, layout: str) -> Tensor:
    """Return a tensor of an exchange point as (B, C, H, W); height or width is 1 where it has none.

    Args:
        x: with its channels where the layout says.
        layout: of the `ExchangePoint`.
    """
    if layout == "NHWC":
        return x.permute(0, 3, 1, 2)
    if layout == "NLC":
        return x.transpose(1, 2).unsqueeze(3)
    return x[:, :, None, None] if layout == "NC" else x


def as_it_was(x: Tensor, layout: str) -> Tensor:
    """Return a map (B, C, H, W) in the layout of an exchange point: the inverse of `as_map`."""
    if layout == "NHWC":
        return x.permute(0, 2, 3, 1)
    if layout == "NLC":
        return x.squeeze(3).transpose(1, 2)
    return x.flatten(1) if layout == "NC" else x


def _chosen(name: str, number: int, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Return the numbers of the stages after which maps are exchanged, sorted.

    Raises:
        UsageError: there are no such stages.
    """
    if not number:
        raise UsageError(
            f"model.backbone.backbone: {name} does not say after which of its stages networks can "
            "exchange maps (exchange_points); choose a backbone that does, such as segnet, unet, "
            "resnet, mlp or timm"
        )
    if wanted is None:
        return tuple(range(number))
    if not wanted or any(not -number <= place < number for place in wanted):
        raise UsageError(
            f"model.backbone.exchange_at: {list(wanted)}; {name} has the stages 0 to {number - 1}"
        )
    return tuple(sorted({place % number for place in wanted}))
