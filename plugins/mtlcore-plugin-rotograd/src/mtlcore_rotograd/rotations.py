"""Rotations of features, and what turns the tasks' gradients towards one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from mtlcore.distributed import SINGLE_PROCESS, Distributed
from mtlcore.models import is_exporting

# Of Adam, torch's defaults.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@final
class Rotation(nn.Module):
    """A rotation of the channels of a map, `R = exp(S - S')` with S strictly upper triangular.

    S and the moments of its Adam are buffers: the network's optimizer knows nothing of them.

    R is computed where S has changed, not in each forward pass; a program that is exported holds
    it as a constant, because ONNX has no matrix exponential.

    Args:
        channels: of the map.

    Attributes:
        generator: (C, C), S and whatever below its diagonal, which is not read.
        kept: (C, C), R of the S that `current` saw last; in no checkpoint.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("generator", "mean", "square"):
            self.register_buffer(name, torch.zeros(channels, channels))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.generator: Tensor
        self.mean: Tensor
        self.square: Tensor
        self.steps: Tensor
        self.register_buffer("kept", torch.eye(channels), persistent=False)
        self.kept: Tensor
        self._kept_of: tuple[Tensor | None, int] = (None, 0)
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]

    def matrix(self, generator: Tensor | None = None) -> Tensor:
        """Return R, (C, C), which is orthogonal with determinant 1.

        Args:
            generator: S, if not its own.
        """
        upper = (self.generator if generator is None else generator).triu(1)
        with torch.autocast(upper.device.type, enabled=False):
            matrix: Tensor = torch.linalg.matrix_exp(upper - upper.mT)
        return matrix

    @torch.no_grad()
    def current(self) -> Tensor:
        """Return R of its own S, (C, C), without a graph."""
        if is_exporting():
            return self.kept
        if torch.compiler.is_compiling():
            return self.matrix()
        # Averages of weights put other values into it, functional calls another tensor.
        of, version = self._kept_of
        if of is not self.generator or version != of._version:
            self.kept, self._kept_of = self.matrix(), (self.generator, self.generator._version)
        return self.kept

    def forward(self, features: Tensor) -> Tensor:
        """Turn features (B, C, ...) along their channels."""
        return torch.einsum("dc,bc...->bd...", self.current().to(features.dtype), features)

    def turn(self, alignment: Tensor, lr: float) -> None:
        """Take a step of Adam by which the trace of `R' A` grows.

        Args:
            alignment: A, (C, C).
            lr: the learning rate of S.
        """
        with torch.enable_grad():
            generator = self.generator.detach().requires_grad_()
            away = -(self.matrix(generator) * alignment.to(generator)).sum()
            (gradient,) = torch.autograd.grad(away, generator)
        with torch.no_grad():
            self.steps += 1
            steps = self.steps.double()
            self.mean.lerp_(gradient, 1 - _BETAS[0])
            self.square.lerp_(gradient.square(), 1 - _BETAS[1])
            mean = self.mean / (1 - _BETAS[0] ** steps)
            root = (self.square / (1 - _BETAS[1] ** steps)).sqrt() + _EPSILON
            self.generator -= lr * mean / root


def _refresh(module: Rotation, _keys: object) -> None:
    """Compute R of what was loaded, as no forward pass need come before an export."""
    module.current()


#: Of one forward pass: per task, the gradients at its turned maps, None where none arrived.
Arrived = Mapping[str, Sequence[Tensor | None]]


def alignments(
    passes: Sequence[Arrived],
    rotations: Mapping[str, Sequence[Tensor]],
    distributed: Distributed = SINGLE_PROCESS,
) -> dict[str, list[Tensor]]:
    """Return, per task and map, what its rotation should be turned towards.

    The paper's loss of the rotation of task i is the mean over samples of `|R_i v - G~_i|^2`, where
    G~_i is the gradient at the turned features, `G_j = R_j' G~_j` that at the features themselves,
    and v the mean over tasks of the G_j, brought to one length. As R_i is orthogonal, only
    `-2 <R_i v, G~_i>` depends on it, which is `-2 trace(R_i' A_i)` with `A_i = sum_n G~_i v'`, over
    samples n and places of the map. Here the G~ are in units of their lengths, over all maps,
    samples and processes: a factor per task, which Adam takes out.

    Args:
        passes: what arrived in each forward pass of the step, of which a map's place and the number
            of maps are the same.
        rotations: per task of the step, the matrix R of each map; the same tasks and maps in every
            process.
        distributed: the processes that each have a part of the step.

    Returns:
        Per task that has a gradient, A of each map, (C, C); none of less than two tasks, which have
        nothing to agree on.
    """
    sums = [
        sum(float(g.double().square().sum()) for one in passes for g in one.get(task, ())
            if g is not None)
        for task in rotations
    ]  # fmt: skip
    squares = zip(rotations, distributed.all_reduce_floats(sums), strict=True)
    lengths = {task: square**0.5 for task, square in squares if square > 0}
    if len(lengths) < 2:
        return {}
    found = {task: [torch.zeros_like(r) for r in rotations[task]] for task in lengths}
    for one in passes:
        for place in range(max(map(len, one.values()), default=0)):
            there = {task: one[task][place] for task in lengths if task in one}
            units = {
                task: gradient.movedim(1, 0).flatten(1).to(found[task][place]) / lengths[task]
                for task, gradient in there.items()
                if gradient is not None
            }
            if units:
                back = [rotations[task][place].mT @ unit for task, unit in units.items()]
                target = torch.stack(back).sum(0) / len(lengths)
                for task, unit in units.items():
                    found[task][place] += unit @ target.mT
    distributed.all_reduce([a for of_task in found.values() for a in of_task])
    return found
