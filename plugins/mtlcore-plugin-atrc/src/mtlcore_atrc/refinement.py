"""What a task's map becomes of what the task gathers from all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, final

import torch
from torch import Tensor, nn

from mtlcore.tasks import Task
from mtlcore_atrc.contexts import Context, Kind, make_context

#: Name of a source -> the kinds of context gathered from it, each with its weight; None: 1.
Parts: TypeAlias = Mapping[str, Mapping[Kind, Tensor | None]]


@final
class Refinement(nn.Module):
    """Contexts of a target, one after another projected and added up, and joined with its own map.

    With contexts G_s, one for each source, and the target's own map F,

        R = relu(norm(A F + B norm'(sum_s P_s G_s))),

    where A, B and all P_s are matrices over channels. The scale of the inner norm begins at 0, so
    that at first nothing is gathered. Without a source there is no B and no inner norm. Side by
    side, as in the authors' code, the P_s are one convolution, and A and B another one.

    Args:
        target: the task.
        sources: all tasks.
        kinds: name of a source -> the kinds that may be gathered from it, "none" left out.
        channels: of all maps.
        inner: of contexts.
        window: of local contexts.
        dropout: of whole channels of the result, unless contexts are being searched for.
    """

    def __init__(
        self,
        target: Task,
        sources: Sequence[Task],
        kinds: Mapping[str, Sequence[Kind]],
        *,
        channels: int,
        inner: int,
        window: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self._target, self._inner = target.name, inner
        self._keys = {task.name: task.key for task in sources if kinds[task.name]}
        self.contexts = nn.ModuleDict(
            {
                key: nn.ModuleDict(
                    {_key(k): make_context(k, channels, inner, window) for k in kinds[name]}
                )
                for name, key in self._keys.items()
            }
        )
        self.projections = nn.ModuleDict(
            {key: nn.Conv2d(inner, channels, 1, bias=False) for key in self._keys.values()}
        )
        self.own = nn.Conv2d(channels, channels, 1, bias=False)
        self.gathered: nn.Sequential | None = None
        if self._keys:
            norm = nn.BatchNorm2d(channels)
            nn.init.zeros_(norm.weight)
            self.gathered = nn.Sequential(norm, nn.Conv2d(channels, channels, 1, bias=False))
        self.join = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.dropout = nn.Dropout2d(dropout)
        self.draw([*self._keys])

    def draw(self, sources: Sequence[str]) -> None:
        """Draw the convolutions as torch draws those of maps side by side.

        Args:
            sources: names of the tasks that something is gathered from.
        """
        inputs = self.own.in_channels * (2 if sources else 1)
        layers: list[tuple[nn.Module, int]] = [(self.own, inputs)]
        if self.gathered is not None:
            layers.append((self.gathered[1], inputs))
        layers += [(x, self._inner * max(1, len(sources))) for x in self.projections.values()]
        for layer, fan_in in layers:
            assert isinstance(layer, nn.Conv2d)
            nn.init.uniform_(layer.weight, -(fan_in**-0.5), fan_in**-0.5)

    def forward(
        self,
        maps: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        parts: Parts,
        *,
        searching: bool,
    ) -> Tensor:
        """Refine the target's map.

        Args:
            maps: of the target and of all sources that something is gathered from, (B, channels,
                h, w).
            labels: where each label of a task is, (B, labels, h w), for those that contexts need.
            parts: what is gathered; sources that nothing is gathered from are left out.
            searching: whether contexts are being searched for. Then values have no scale, what is
                gathered has a norm even if it is nothing, and no channel is dropped.
        """
        target = maps[self._target]
        mixed = self.own(target)
        if self.gathered is not None and (parts or searching):
            total = torch.zeros_like(target)
            for source, kinds in parts.items():
                total = total + self._gathered(source, maps, labels, kinds, scaled=not searching)
            mixed = mixed + self.gathered(total)
        found: Tensor = self.join(mixed)
        return found if searching else self.dropout(found)

    def _gathered(
        self,
        source: str,
        maps: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        kinds: Mapping[Kind, Tensor | None],
        *,
        scaled: bool,
    ) -> Tensor:
        """Return what is gathered from one source, projected."""
        key = self._keys[source]
        found: list[Tensor] = []
        for kind, weight in kinds.items():
            owner = {"t-label": self._target, "s-label": source}.get(kind)
            where = None if owner is None else labels[owner]
            context = self.context(source, kind)
            x = context(maps[self._target], maps[source], where, scaled=scaled)
            found.append(x if weight is None else weight.to(x.dtype) * x)
        projected: Tensor = self.projections[key](torch.stack(found).sum(0))
        return projected

    def context(self, source: str, kind: Kind) -> Context:
        """Return the module that gathers a kind of context from a source."""
        of_source = self.contexts[self._keys[source]]
        assert isinstance(of_source, nn.ModuleDict)
        found = of_source[_key(kind)]
        assert isinstance(found, Context)
        return found


def _key(kind: Kind) -> str:
    # Programs name modules in Python, where "global" is a keyword.
    return f"{kind.replace('-', '_')}_context"
