"""Cross-stitch networks: a network per task, and weighted sums of their maps after each stage.

Misra, Shrivastava, Gupta and Hebert, "Cross-Stitch Networks for Multi-task Learning", CVPR 2016
(arXiv 1604.03539).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast, final

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.models import BackbonePerTask, ExchangePoint, ExchangingBackbone, Places
from mtlcore.ranges import Fraction, Positive
from mtlcore.tasks import Task
from mtlcore_crossstitch.mixing import along_channels, shares

__all__ = ["CrossStitch"]


@final
class CrossStitchUnit(nn.Module):
    """The weights of one exchange: for each task, of every task's map.

    Args:
        tasks: of the run.
        point: where the maps are exchanged.
        own: weight of a task's own map at first.
        per_channel: whether each channel has weights of its own.
    """

    def __init__(
        self, tasks: Sequence[Task], point: ExchangePoint, own: float, per_channel: bool
    ) -> None:
        super().__init__()
        self._layout = point.layout
        self._keys = {task.name: task.key for task in tasks}
        channels = point.channels if per_channel else 1
        # A parameter per task: after the last exchange, weights are a task's own.
        self.rows = nn.ParameterDict(
            {
                task.key: Parameter(shares(len(tasks), place, own)[:, None].repeat(1, channels))
                for place, task in enumerate(tasks)
            }
        )

    def row(self, task: str) -> Parameter:
        """Return (tasks, channels): what a task weighs every task's channels by."""
        return cast(Parameter, self.rows[self._keys[task]])

    def forward(self, maps: Mapping[str, Tensor], task: str) -> Tensor:
        """Compute the weighted sum of all tasks' maps that a task goes on with."""
        shape = along_channels(self._layout)
        weights = self.row(task).unbind()
        parts = [w.reshape(shape) * x for w, x in zip(weights, maps.values(), strict=True)]
        mixed: Tensor = sum(parts[1:], start=parts[0])
        return mixed.to(maps[task].dtype)


@final
class CrossStitch(ExchangingBackbone):
    """Cross-stitch network: one network per task, whose maps are mixed after each stage.

    After stage l the network of task i goes on with

        x_i <- sum_j a_ij * x_j

    where a_ij are learnt, by default one number per channel (section 4.1), and any number of tasks
    takes part. They begin as a convex combination: `own` for i = j, and the rest of 1 in equal
    parts for the others. Nothing is shared, so all parameters before the last exchange are reached
    by every task's loss; only the weights of the last one are a task's own. There is no cut.

    Args:
        backbone: the network that each task gets one of, with its settings, such as {name = "unet",
            width = 0.125, decoder = "shared"}. It must say where maps can be exchanged.
        exchange_at: numbers of the stages after which maps are mixed, from 0 at the input; negative
            ones count from the end. Unset: after each, those of a decoder included.
        own: weight of a task's own map at first; with 1 the networks begin apart.
        per: whether "channel" has weights of its own, as published, or the whole "layer" has one
            number per pair of tasks.
        unit_rate: learning rate of the weights divided by that of the networks. The paper has 100
            to 1000 for SGD; under Adam, which moves every number by about the rate, it is best
            near 1.

    Raises:
        UsageError: the backbone names no such stages.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: BackbonePerTask,
        exchange_at: Places = None,
        own: Fraction = 0.9,
        per: Literal["channel", "layer"] = "channel",
        unit_rate: Positive = 100.0,
    ) -> None:
        super().__init__(tasks, backbone, exchange_at)
        self.unit_rate = unit_rate
        self.units = nn.ModuleList(
            CrossStitchUnit(tasks, point, own, per == "channel") for point in self.points
        )

    def exchange(
        self, number: int, maps: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """Mix the maps of all tasks, for each task that goes on."""
        return {task: self.units[number](maps, task) for task in wanted}

    def exchange_parameters(self, number: int, task: str) -> Iterable[Parameter]:
        """Return the weights of one task in an exchange."""
        unit = self.units[number]
        assert isinstance(unit, CrossStitchUnit)
        return [unit.row(task)]

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Yield the group of all weights, which learn at a rate of their own."""
        if self.unit_rate != 1:
            yield {"params": [*self.units.parameters()], "lr_scale": self.unit_rate}
