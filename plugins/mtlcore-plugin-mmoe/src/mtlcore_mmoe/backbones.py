"""MMoE, CGC and PLE: mixtures of experts over the input itself, or over the maps of an encoder."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Annotated, cast, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import Features
from mtlcore.inputs import Inputs
from mtlcore.models import Backbone, WrappingBackbone
from mtlcore.ranges import Channels, Layers, Length, Nested, Range
from mtlcore.tasks import Task
from mtlcore_mmoe.extraction import Extracted, Extraction, Plan
from mtlcore_mmoe.gates import Gate
from mtlcore_mmoe.layers import layers

Encoder = Annotated[Callable[..., Backbone] | None, Nested("backbones")]
"""The setting `encoder`: what makes the backbone inside; None: experts read the input."""

Experts = Annotated[int, Range(ge=1, le=1000)]
Tower = Annotated[tuple[Channels, ...], Length(le=1000)]

#: Units of an expert on the input itself, of the MMoE paper's experiments on synthetic data.
_HIDDEN = (16,)
_SOFTMAX = Gate()


class MixtureBackbone(WrappingBackbone, abc.ABC):
    """Experts over each map or vector of an encoder, or over the input, and mixtures per task.

    Maps are as many as the encoder has, with its strides; all of them are the task's own.

    Args:
        tasks: of the run.
        plan: of the experts.
        inputs: number of values per sample, where experts read the input itself.
        encoder: makes the backbone inside.
        hidden: what each layer of an expert gives; None: 16 on the input itself, and one layer as
            wide as what it reads over an encoder.
        tower: what each layer of a task gives, between its mixture and its head.

    Raises:
        UsageError: neither `inputs` nor an encoder is given, or both are.
    """

    reads_through = "encoder"
    input_kind = "vector"

    @abc.abstractmethod
    def __init__(
        self,
        tasks: Sequence[Task],
        plan: Plan,
        inputs: int | None,
        encoder: Callable[..., Backbone] | None,
        hidden: Sequence[int] | None,
        tower: Sequence[int],
    ) -> None:
        super().__init__()
        if (inputs is None) == (encoder is None):
            raise UsageError(
                "model.backbone.inputs: experts read either vectors of so many values (inputs), or "
                "what another backbone makes of the input (encoder); set "
                + ("one of the two" if encoder is None else "no more than one of the two")
            )
        self._inputs = inputs
        self.encoder = None if encoder is None else encoder(tasks)
        channels: tuple[int, ...] = () if inputs is None else (inputs,)
        self.strides, self._are_maps = (1,), [False]
        if self.encoder is not None:
            channels, self.strides = self.encoder.out_channels, self.encoder.strides
            for name in ("main_map", "input_multiple", "input_kind"):
                setattr(self, name, getattr(self.encoder, name))
            self._are_maps = [bool(s) and self.input_kind == "image" for s in self.strides]
        self._keys = {task.name: task.key for task in tasks}
        self.mixtures = nn.ModuleList()
        ends = []
        for c, maps in zip(channels, self._are_maps, strict=True):
            widths = tuple(hidden or (_HIDDEN if self.encoder is None else (c,)))
            self.mixtures.append(Extraction(self._keys, c, widths, plan, maps=maps))
            ends.append(widths[-1])
        self.towers = nn.ModuleDict(
            {
                task.key: nn.ModuleList(
                    layers(c, tower, maps=maps)
                    for c, maps in zip(ends, self._are_maps, strict=True)
                )
                for task in tasks
            }
        )
        self.out_channels = tuple(tower[-1] if tower else c for c in ends)

    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Compute the mixtures of the named tasks.

        Raises:
            UsageError: the input is no vector of so many values, or what the encoder gives is not
                what experts read.
        """
        features = self._encoded(inputs, tasks)
        found = self._mixed(features, tasks)
        terms = dict(features.terms)
        for each in found:
            for name, term in each.terms.items():
                terms[name] = terms[name] + term if name in terms else term
        return Features(
            per_task={
                task: tuple(
                    tower(each.mixed[task])
                    for tower, each in zip(self._towers(task), found, strict=True)
                )
                for task in tasks
            },
            cut=() if features.early else tuple(chain.from_iterable(each.cut for each in found)),
            early=features.early,
            terms=terms,
        )

    @torch.no_grad()
    def gate_values(self, inputs: Inputs, tasks: Sequence[str]) -> dict[str, tuple[Tensor, ...]]:
        """Return how much of each expert the tasks' mixtures have; call it in evaluation mode.

        Args:
            inputs: as in `forward`.
            tasks: names of tasks.

        Returns:
            Per task, weights (B, E) for each map or vector: of the task's own experts, then of the
            shared ones; of several levels those of the last one.
        """
        found = self._mixed(self._encoded(inputs, tasks), tasks)
        return {task: tuple(each.weights[task] for each in found) for task in tasks}

    def wrapped(self) -> Sequence[Backbone]:
        """Return the backbone inside, if there is one."""
        return () if self.encoder is None else (self.encoder,)

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the task's gates, experts and tower, and what is its own in the encoder."""
        inside = (backbone.task_parameters(task) for backbone in self.wrapped())
        mixtures = (mixture.task_parameters(task) for mixture in self._extractions())
        towers = (tower.parameters() for tower in self._towers(task))
        return chain.from_iterable(chain(inside, mixtures, towers))

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last layer of each shared expert."""
        return chain.from_iterable(m.last_shared_parameters() for m in self._extractions())

    def _encoded(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        if self.encoder is not None:
            return self._of_encoder(self.encoder, inputs, tasks)
        shape = list(inputs.shape) if isinstance(inputs, Tensor) else None
        if shape is None or len(shape) != 2 or shape[1] != self._inputs:
            what = "a tree of tensors" if shape is None else f"of shape {shape[1:]}"
            raise UsageError(
                f"model.backbone.inputs is {self._inputs}, but a sample is {what}; without an "
                "encoder, experts read vectors of that many values"
            )
        return Features(shared=(cast(Tensor, inputs),))

    def _of_encoder(self, encoder: Backbone, inputs: Inputs, tasks: Sequence[str]) -> Features:
        features: Features = encoder(inputs, tasks)
        name = type(encoder).__name__
        if features.per_task:
            raise UsageError(
                f"model.backbone.encoder: {name} gives tasks maps of their own, and experts read "
                "maps that tasks share; let it share them (unet: "
                "model.backbone.encoder.decoder=none), or choose another encoder"
            )
        dimensions = [4 if maps else 2 for maps in self._are_maps]
        if [x.dim() for x in features.shared] != dimensions:
            raise UsageError(
                f"model.backbone.encoder: {name} gives features of the shapes "
                f"{[list(x.shape) for x in features.shared]}; experts read vectors (B, C), and of "
                "images maps (B, C, H, W)"
            )
        return features

    def _mixed(self, features: Features, tasks: Sequence[str]) -> list[Extracted]:
        return [
            mixture(x, tasks) for mixture, x in zip(self.mixtures, features.shared, strict=True)
        ]

    def _extractions(self) -> Iterable[Extraction]:
        return cast("Iterable[Extraction]", self.mixtures)

    def _towers(self, task: str) -> nn.ModuleList:
        return cast(nn.ModuleList, self.towers[self._keys[task]])


@final
class MMoE(MixtureBackbone):
    """Multi-gate Mixture-of-Experts: shared experts, and a gate of each task that mixes them.

    Ma et al., KDD 2018. Task k reads `sum_i g_k(x)_i f_i(x)` of the experts f_i, with the gate
    `g_k(x) = softmax(W_k x)`. Here x is the input, as in the paper, or each map or vector of an
    encoder, which then has experts and gates of its own. The experts of a map are 3x3 convolutions
    with batch norm, and its gates read its mean over all pixels: one mixture per sample.

    Args:
        experts: how many all tasks share.
        hidden: outputs of each layer of an expert; unset: 16, as in the paper's experiments on
            synthetic data, and over an encoder one layer with as many as it reads.
        tower: outputs of each layer between a task's mixture and its head; the paper has one of 8.
        gate: what weighs the experts, such as {name = "dselect-k", k = 2}.
        inputs: number of values per sample, where there is no encoder.
        encoder: a backbone whose maps or vectors the experts read, such as {name = "unet",
            width = 0.125, decoder = "none"}; unset, or the name "none": they read the input.

    Raises:
        UsageError: there are neither `inputs` nor an encoder, or both, or fewer experts than the
            gate is to select.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        experts: Experts = 8,
        hidden: Layers | None = None,
        tower: Tower = (),
        gate: Gate = _SOFTMAX,
        inputs: Channels | None = None,
        encoder: Encoder = None,
    ) -> None:
        plan = Plan(shared=experts, own=0, levels=1, gate=gate)
        super().__init__(tasks, plan, inputs, encoder, hidden, tower)


@final
class CGC(MixtureBackbone):
    """Customized Gate Control: shared experts, and experts of each task which no other task mixes.

    Tang et al., RecSys 2020. The gate of a task weighs its own experts and the shared ones. What
    experts read, and what they are on maps, is as in MMoE.

    Args:
        shared: how many experts all tasks share.
        own: how many experts each task has for itself.
        hidden: outputs of each layer of an expert; unset: 16, and over an encoder one layer with as
            many as it reads.
        tower: outputs of each layer between a task's mixture and its head.
        gate: what weighs the experts, such as {name = "dselect-k", k = 2}.
        inputs: number of values per sample, where there is no encoder.
        encoder: a backbone whose maps or vectors the experts read; unset, or the name "none": they
            read the input.

    Raises:
        UsageError: there are neither `inputs` nor an encoder, or both, or fewer experts than the
            gate is to select.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        shared: Experts = 4,
        own: Experts = 2,
        hidden: Layers | None = None,
        tower: Tower = (),
        gate: Gate = _SOFTMAX,
        inputs: Channels | None = None,
        encoder: Encoder = None,
    ) -> None:
        plan = Plan(shared=shared, own=own, levels=1, gate=gate)
        super().__init__(tasks, plan, inputs, encoder, hidden, tower)


@final
class PLE(MixtureBackbone):
    """Progressive Layered Extraction: levels of CGC, with a shared stream between them.

    Tang et al., RecSys 2020. At every level but the last a shared gate mixes the experts of all
    tasks and the shared ones; the next level's shared experts read that mixture, a task's experts
    and gate that of the task. The last level is CGC. So tasks part step by step: a task's experts
    are its own at the last level, and its gates at the last two.

    Another number of tasks means another network of the shared gates: a trained one takes no new
    task in (`mtl adapt`), as MMoE and CGC do.

    Args:
        levels: how many; 1 is CGC.
        shared: how many experts all tasks share, per level.
        own: how many experts each task has, per level.
        hidden: outputs of each layer of an expert; unset: 16, and over an encoder one layer with as
            many as it reads.
        tower: outputs of each layer between a task's mixture and its head.
        gate: what weighs the experts, such as {name = "dselect-k", k = 2}.
        inputs: number of values per sample, where there is no encoder.
        encoder: a backbone whose maps or vectors the experts read; unset, or the name "none": they
            read the input.

    Raises:
        UsageError: there are neither `inputs` nor an encoder, or both, or fewer experts than the
            gate is to select.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        levels: Annotated[int, Range(ge=1, le=100)] = 2,
        shared: Experts = 4,
        own: Experts = 2,
        hidden: Layers | None = None,
        tower: Tower = (),
        gate: Gate = _SOFTMAX,
        inputs: Channels | None = None,
        encoder: Encoder = None,
    ) -> None:
        plan = Plan(shared=shared, own=own, levels=levels, gate=gate)
        super().__init__(tasks, plan, inputs, encoder, hidden, tower)
