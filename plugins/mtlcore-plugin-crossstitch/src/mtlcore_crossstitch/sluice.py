"""Sluice networks: cross-stitch over subspaces of the maps, and a mixture of all stages at the end.

Ruder, Bingel, Augenstein and Søgaard, "Latent Multi-task Architecture Learning", AAAI 2019 (arXiv
1705.08142, at first "Sluice networks: Learning what to share between loosely related tasks").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations
from typing import Annotated, Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import Features
from mtlcore.inputs import Inputs
from mtlcore.models import (
    BackbonePerTask,
    ExchangePoint,
    ExchangingBackbone,
    Places,
    as_map,
)
from mtlcore.ranges import Fraction, NonNegative, Positive, Range
from mtlcore.tasks import Task
from mtlcore_crossstitch.mixing import shares

__all__ = ["Sluice"]


@final
class SubspaceUnit(nn.Module):
    """The weights of one exchange: for each subspace of a task, of every subspace of every task.

    Args:
        tasks: of the run.
        point: where the maps are exchanged.
        subspaces: into which the channels of a map are divided.
        own: weight of a subspace itself at first.
    """

    def __init__(
        self, tasks: Sequence[Task], point: ExchangePoint, subspaces: int, own: float
    ) -> None:
        super().__init__()
        self._axis = point.layout.index("C")
        self._subspaces = subspaces
        self._keys = {task.name: task.key for task in tasks}
        number = len(tasks) * subspaces
        weights = torch.stack([shares(number, place, own) for place in range(number)])
        self.rows = nn.ParameterDict(
            {
                task.key: Parameter(part.clone())
                for task, part in zip(tasks, weights.chunk(len(tasks)), strict=True)
            }
        )

    def row(self, task: str) -> Parameter:
        """Return (subspaces, tasks * subspaces): what a task weighs all subspaces by."""
        return cast(Parameter, self.rows[self._keys[task]])

    def forward(self, maps: Mapping[str, Tensor], task: str) -> Tensor:
        """Compute the map that a task goes on with, subspace by subspace."""
        parts = [part for x in maps.values() for part in x.chunk(self._subspaces, self._axis)]
        mixed: list[Tensor] = []
        for weights in self.row(task).unbind():
            terms = [w * part for w, part in zip(weights.unbind(), parts, strict=True)]
            mixed.append(sum(terms[1:], start=terms[0]))
        return torch.cat(mixed, self._axis).to(maps[task].dtype)


@final
class Skips(nn.Module):
    """A task's mixture of its maps of all stages: sum_l b_l h_l, of the size of the last one.

    Args:
        channels: of each map, from the input on.
        last: weight of the last map at first.
    """

    def __init__(self, channels: Sequence[int], last: float) -> None:
        super().__init__()
        self.weights = Parameter(shares(len(channels), len(channels) - 1, last))
        width = channels[-1]
        self.projections = nn.ModuleList(
            nn.Identity() if number == width else nn.Conv2d(number, width, 1, bias=False)
            for number in channels[:-1]
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Compute (B, C, H, W), as the last map is, from maps of all stages."""
        *earlier, last = maps
        *weights, of_last = self.weights.unbind()
        mixed = of_last * last
        for weight, project, x in zip(weights, self.projections, earlier, strict=True):
            part = project(x)
            if part.shape[2:] != last.shape[2:]:
                part = F.interpolate(part, last.shape[2:], mode="bilinear", align_corners=False)
            mixed = mixed + weight * part
        return mixed.to(last.dtype)


@final
class Sluice(ExchangingBackbone):
    """Sluice network: one network per task, subspaces of whose maps are mixed after each stage.

    The channels of a map are divided into subspaces; that of task i and number r becomes

        x_ir <- sum_js a_(ir)(js) x_js

    over all tasks j and subspaces s, with one number a per pair. What the head of a task reads is a
    mixture of its maps of all stages, sum_l b_l h_l: the map that a head of a single one reads
    (`main_map`) is the last of them, those before are brought to its channels by a 1x1 convolution
    and to its size. Subspaces are kept apart by a term beside the tasks' losses,

        orthogonality * sum over tasks, stages and pairs r < s of |G_r G_s'|^2_F

    where the rows of G_r are the filters that make the channels of subspace r.

    Args:
        backbone: the network that each task gets one of, with its settings, such as {name = "unet",
            width = 0.125, decoder = "shared"}. It must say where maps can be exchanged.
        exchange_at: numbers of the stages after which maps are mixed, from 0 at the input; negative
            ones count from the end. Unset: after each, those of a decoder included.
        subspaces: into which the channels of each map are divided; 1 is a cross-stitch network with
            a number per pair of tasks.
        own: weight of a subspace itself at first; all others have equal parts of the rest of 1.
        skips: whether heads read a mixture of all stages.
        last: weight of the last stage in that mixture at first; the others have equal parts of the
            rest of 1.
        orthogonality: factor on the term that keeps subspaces apart; 0: none.
        unit_rate: learning rate of all these weights divided by that of the networks.

    Raises:
        UsageError: the backbone names no such stages, or maps that cannot be divided or mixed so.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: BackbonePerTask,
        exchange_at: Places = None,
        subspaces: Annotated[int, Range(ge=1, le=1024)] = 2,
        own: Fraction = 0.95,
        skips: bool = True,
        last: Fraction = 0.9,
        orthogonality: NonNegative = 0.1,
        unit_rate: Positive = 1.0,
    ) -> None:
        super().__init__(tasks, backbone, exchange_at)
        odd = [point.channels for point in self.points if point.channels % subspaces]
        if odd:
            raise UsageError(
                f"model.backbone.subspaces: {subspaces} does not divide the {odd[0]} channels of a "
                "map; choose another number, another width, or other stages (exchange_at)"
            )
        self.unit_rate = unit_rate
        self.orthogonality = orthogonality if subspaces > 1 else 0.0
        self._subspaces = subspaces
        if self.orthogonality and any(point.weight is None for point in self.points):
            raise UsageError(
                "model.backbone.orthogonality: one of the maps is made by no weight with a filter "
                "per channel; set it to 0, or choose other stages (exchange_at)"
            )
        self.units = nn.ModuleList(
            SubspaceUnit(tasks, point, subspaces, own) for point in self.points
        )
        channels = [point.channels for point in self.points[:-1]]
        channels.append(self.out_channels[self.main_map])
        if skips and any(point.layout == "NLC" for point in self.points[:-1]):
            raise UsageError(
                "model.backbone.skips: tokens of a transformer cannot be mixed with maps; set it "
                "to false"
            )
        self.skips = nn.ModuleDict(
            {task.key: Skips(channels, last) for task in tasks} if skips else {}
        )

    def exchange(
        self, number: int, maps: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """Mix the subspaces of all tasks, for each task that goes on."""
        return {task: self.units[number](maps, task) for task in wanted}

    def exchange_parameters(self, number: int, task: str) -> Iterable[Parameter]:
        """Return the weights of one task in an exchange."""
        return [cast(SubspaceUnit, self.units[number]).row(task)]

    def finish(
        self, task: str, maps: tuple[Tensor, ...], exchanged: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Put the mixture of all stages in the place of the map that heads of one map read."""
        if not self.skips:
            return maps
        layouts = [point.layout for point in self.points]
        found = [as_map(x, layout) for x, layout in zip(exchanged[:-1], layouts, strict=False)]
        main = maps[self.main_map]
        flat = main.dim() == 2
        mixed = self.skips[self._keys[task]]([*found, as_map(main, "NC") if flat else main])
        place = self.main_map % len(maps)
        return (*maps[:place], mixed.flatten(1) if flat else mixed, *maps[place + 1 :])

    def finish_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the weights and projections of the task's mixture of stages."""
        return self.skips[self._keys[task]].parameters() if self.skips else ()

    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Compute the features, and in training the term that keeps subspaces apart."""
        features: Features = super().forward(inputs, tasks)
        if not self.training or not self.orthogonality:
            return features
        return replace(features, terms={**features.terms, "orthogonality": self.overlap()})

    # A compiler does not follow how the filters are found.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def overlap(self) -> Tensor:
        """Return the term of subspaces that are not orthogonal, times its factor."""
        points = chain.from_iterable(self._points(task) for task in self._keys)
        terms = []
        for weight in (point.weight for point in points):
            assert weight is not None
            parts = weight.flatten(1).chunk(self._subspaces)
            terms += [(one @ other.T).square().sum() for one, other in combinations(parts, 2)]
        return self.orthogonality * torch.stack(terms).sum()

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Yield the group of all weights of maps, if they learn at a rate of their own."""
        weights = [skip.get_parameter("weights") for skip in self.skips.values()]
        if self.unit_rate != 1:
            yield {"params": [*self.units.parameters(), *weights], "lr_scale": self.unit_rate}
