"""Levels of experts over one vector or map, and a mixture of them for each task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore_mmoe.gates import ExpertGate, Gate
from mtlcore_mmoe.layers import layers


@dataclass(frozen=True)
class Plan:
    """What mixtures are made of.

    Args:
        shared: number of experts that all tasks share, per level.
        own: number of experts of each task, per level.
        levels: number of levels, each of which reads the mixtures of the one before.
        gate: what weighs them.
    """

    shared: int
    own: int
    levels: int
    gate: Gate


@dataclass  # not attrs: torch.compile can follow this one
class Extracted:
    """What levels of experts computed.

    Args:
        mixed: task -> its mixture at the last level.
        weights: task -> the weights (B, E) of that mixture: of its own experts, then of the shared
            ones.
        cut: tensors such that every path from a shared parameter to a loss crosses one of them.
        terms: name -> scalar of all gates that ran.
    """

    mixed: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    cut: list[Tensor] = field(default_factory=list)
    terms: dict[str, Tensor] = field(default_factory=dict)
    _views: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def view(self, x: Tensor) -> Tensor:
        """Return what parts of a single task may read of what tasks share, and note the crossing.

        It is a view, because what is shared reads the tensor itself: a path crosses once. Of the
        same tensor it is always the same one.
        """
        for known, view in self._views:
            if known is x:
                return view
        seen: Tensor = x.view_as(x)
        self._views.append((x, seen))
        if seen.requires_grad:
            self.cut.append(seen)
        return seen

    def weigh(self, gate: nn.Module, x: Tensor) -> Tensor:
        """Ask a gate for weights (B, E) at its input, and add up its terms."""
        weights: Tensor
        weights, terms = cast(ExpertGate, gate)(x.mean((2, 3)) if x.dim() == 4 else x)
        for name, term in terms.items():
            self.terms[name] = self.terms[name] + term if name in self.terms else term
        return weights


@final
class Level(nn.Module):
    """One level: experts, a gate per task, and unless it is the last one a gate of what is shared.

    Args:
        keys: of the tasks.
        inputs: number of values or channels that experts and gates read.
        widths: what each layer of an expert gives.
        maps: whether they read maps or vectors.
        plan: numbers of experts, and what weighs them.
        last: whether it is the last level.
    """

    def __init__(
        self,
        keys: Iterable[str],
        inputs: int,
        widths: Sequence[int],
        plan: Plan,
        *,
        maps: bool,
        last: bool,
    ) -> None:
        super().__init__()
        keys = list(keys)

        def experts(number: int) -> nn.ModuleList:
            return nn.ModuleList(layers(inputs, widths, maps=maps) for _ in range(number))

        self.shared = experts(plan.shared)
        self.own = nn.ModuleDict({key: experts(plan.own) for key in keys})
        self.gates = nn.ModuleDict(
            {key: plan.gate.make(inputs, plan.own + plan.shared) for key in keys}
        )
        everybody = len(keys) * plan.own + plan.shared
        self.shared_gate = None if last else plan.gate.make(inputs, everybody)

    def own_of(self, key: str) -> nn.ModuleList:
        """Return the experts of a task."""
        return cast(nn.ModuleList, self.own[key])


@final
class Extraction(nn.Module):
    """Levels of experts over one vector or map.

    With one level, experts and gates read it as it is: CGC, and MMoE where tasks have no experts of
    their own. With more (PLE) a task's experts and gate read the task's mixture of the level
    before, the shared experts that of the shared gate, which weighs the experts of all tasks.

    A task's experts are its own at the last level alone, since all others end in the shared stream
    as well; its gates are at the last two, which nothing but its own experts and gates read.

    Args:
        keys: task name -> its key, of all tasks.
        inputs: number of values or channels.
        widths: what each layer of an expert gives.
        maps: whether it is a map (B, C, H, W) or a vector (B, C). The gates of a map read its mean
            over all pixels, padding included.
        plan: of the experts.
    """

    def __init__(
        self,
        keys: Mapping[str, str],
        inputs: int,
        widths: Sequence[int],
        plan: Plan,
        *,
        maps: bool,
    ) -> None:
        super().__init__()
        self._keys = dict(keys)
        reads = [inputs] + [widths[-1]] * (plan.levels - 1)
        self.levels = nn.ModuleList(
            Level(keys.values(), c, widths, plan, maps=maps, last=number == plan.levels)
            for number, c in enumerate(reads, start=1)
        )

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Extracted:
        """Mix for the named tasks; what only others need does not run.

        Args:
            inputs: (B, C, H, W) or (B, C).
            tasks: names of the tasks.
        """
        found = Extracted()
        everybody, depth = list(self._keys), len(self.levels)
        streams, stream = dict.fromkeys(everybody, inputs), inputs
        for number, level in enumerate(cast("Iterable[Level]", self.levels), start=1):
            # Whose parts are the tasks' alone: gates at the last two levels, experts at the last.
            gates_are_own, experts_are_own = number >= depth - 1, number == depth
            seen = streams
            if number == max(depth - 1, 1):  # where tasks part
                seen = {task: found.view(streams[task]) for task in tasks}
            sources = seen if experts_are_own else streams
            own = {
                task: _run(level.own_of(self._keys[task]), sources[task])
                for task in (tasks if experts_are_own else everybody)
            }
            shared = _run(level.shared, stream)
            if level.shared_gate is not None:
                mixable = [*chain.from_iterable(own.values()), *shared]
                stream = _mix(found.weigh(level.shared_gate, stream), mixable)
            if gates_are_own:
                shared = [found.view(x) for x in shared]
            streams = {}
            for task in tasks if gates_are_own else everybody:
                mine = own[task]
                if gates_are_own and not experts_are_own:
                    mine = [found.view(x) for x in mine]
                gate = level.gates[self._keys[task]]
                found.weights[task] = found.weigh(gate, seen[task])
                streams[task] = _mix(found.weights[task], [*mine, *shared])
        found.mixed = streams
        return found

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the task's gates of the last two levels and its experts of the last one."""
        key = self._keys[task]
        *_, last = levels = [*cast("Iterable[Level]", self.levels)][-2:]
        gates = (level.gates[key].parameters() for level in levels)
        return chain(chain.from_iterable(gates), last.own_of(key).parameters())

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last layer of each shared expert at the last level."""
        *_, last = cast("Iterable[Level]", self.levels)
        for expert in last.shared:
            *_, layer = (
                part for part in expert.modules() if isinstance(part, nn.Linear | nn.Conv2d)
            )
            yield from layer.parameters()


def _run(experts: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Return the experts' outputs as one tensor (E, B, C, ...); of no expert none."""
    return [torch.stack([expert(x) for expert in experts])] if len(experts) else []


def _mix(weights: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Add up experts with weights (B, E); `outputs` are (E_1, B, C, ...), (E_2, B, C, ...), ..."""
    parts = torch.split(weights, [len(each) for each in outputs], dim=1)
    mixed = [
        torch.einsum("be,ebc...->bc...", part, each)
        for part, each in zip(parts, outputs, strict=True)
    ]
    return torch.stack(mixed).sum(0) if len(mixed) > 1 else mixed[0]
