"""RotoGrad's rotations: a backbone around another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, cast, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.inputs import Inputs
from mtlcore.models import Backbone, StepContext, Transition, WrappingBackbone
from mtlcore.ranges import LearningRate, Nested
from mtlcore.tasks import Task
from mtlcore_rotograd.rotations import Rotation, alignments


@final
class RotatedBackbone(WrappingBackbone):
    """Another backbone, whose features each task sees turned (Javaloy & Valera, ICLR 2022).

    Between the maps z that tasks share and the head of task i stands a rotation of the channels,
    `z_i = R_i z`, one per map and task. Rotations keep all lengths and angles, so a head loses
    nothing; but the gradient that it sends back is `R_i' G~_i`, and the rotations learn to send the
    tasks' gradients in one direction: R_i descends

        mean over samples of |R_i v - G~_i|^2,    v = mean_j of the G_j at one length

    (section 3.2), with an Adam of its own, after each step that was taken. Until then `R_i` is the
    identity. All gradients that arrive at z_i count, over the micro-batches and processes of a
    step, in which at least two tasks must have one. Maps of single tasks are left as they are.

    The rotations are buffers: the optimizer of the run does not move them, and they are in every
    checkpoint. With the balancer "rotograd" the gradients get one length too; with any other, their
    directions alone are RotoGrad's.

    In a loop of your own, call `at_progress` before each step and `after_step(context)` after it.

    Args:
        tasks: of the run.
        backbone: any backbone, with its settings, such as {name = "segnet", width = 0.0625}.
        rotation_lr: learning rate of the rotations; smaller than the network's, so that these
            follow it slowly.
    """

    reads_through = "backbone"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: Annotated[Callable[[Sequence[Task]], Backbone], Nested("backbones")],
        rotation_lr: LearningRate = 5e-4,
    ) -> None:
        super().__init__()
        self.inner = backbone(tasks)
        for name in ("out_channels", "strides", "main_map", "input_multiple", "input_kind"):
            setattr(self, name, getattr(self.inner, name))
        self._keys = {task.name: task.key for task in tasks}
        self._lr = rotation_lr
        # A rotation for each map that is announced; those of a task's own maps stay as they are.
        self.rotations = nn.ModuleDict(
            {task.key: nn.ModuleList(map(Rotation, self.out_channels)) for task in tasks}
        )
        # What arrived at the turned maps since the step began, per forward pass and task.
        self._arrived: list[dict[str, list[Tensor | None]]] = []

    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Compute the inner backbone's features, and turn those that tasks share."""
        features: Features = self.inner(inputs, tasks)
        own = [x for task in tasks for x in features.per_task.get(task, ())]
        turned = {task: self._turned(features.shared, task) for task in tasks}
        self._listen(turned)
        return replace(
            features,
            shared=(),
            per_task={t: (*turned[t], *features.per_task.get(t, ())) for t in tasks},
            # Early predictions need not be made of these maps.
            cut=features.cut or (() if features.early else (*features.shared, *own)),
        )

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        return self.inner.task_parameters(task)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        return self.inner.last_shared_parameters()

    def wrapped(self) -> Sequence[Backbone]:
        """Return the backbone inside."""
        return (self.inner,)

    @property
    def has_phases(self) -> bool:
        """Whether the backbone inside has: rotations turn alike in all steps."""
        return self.inner.has_phases

    def at_progress(self, fraction: float) -> Transition | None:
        self._arrived = []  # of a step that was not taken
        return super().at_progress(fraction)

    def after_step(self, context: StepContext) -> None:
        """Turn the rotations towards one another, and hand on what the step was."""
        arrived, self._arrived = self._arrived, []
        with torch.no_grad():
            known = {task: self._of(task) for task in context.present}
            matrices = {task: [r.current() for r in several] for task, several in known.items()}
            found = alignments(arrived, matrices, context.distributed)
        for task, several in found.items():
            for rotation, alignment in zip(known[task], several, strict=True):
                if bool(alignment.any()):
                    rotation.turn(alignment, self._lr)
        super().after_step(context)

    def _of(self, task: str) -> list[Rotation]:
        return cast(list[Rotation], [*cast(nn.ModuleList, self.rotations[self._keys[task]])])

    def _turned(self, maps: Sequence[Tensor], task: str) -> tuple[Tensor, ...]:
        return tuple(rotation(x) for rotation, x in zip(self._of(task), maps, strict=False))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _listen(self, turned: Mapping[str, Sequence[Tensor]]) -> None:
        """Keep what will arrive at the turned maps in backward passes of this forward pass."""
        if not self.training or not torch.is_grad_enabled():
            return
        arrived: dict[str, list[Tensor | None]] = {t: [None] * len(x) for t, x in turned.items()}
        self._arrived.append(arrived)

        def keep(gradient: Tensor, *, task: str, place: int) -> None:
            before = arrived[task][place]
            now = gradient.detach()
            arrived[task][place] = now.clone() if before is None else before + now

        for task, maps in turned.items():
            for place, x in enumerate(maps):
                if x.requires_grad:
                    hook = partial(keep, task=task, place=place)
                    x.register_hook(hook)  # type: ignore[no-untyped-call]
