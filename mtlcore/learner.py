"""Everything that learns, as one module: model, losses, cross-task losses and balancing.

One class is one file: each of its methods is a way into the same module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtlcore.balancing import (
    BalancerContext,
    Balancing,
    GramianBalancer,
    TaskGradients,
    floats,
)
from mtlcore.data import Batch
from mtlcore.distributed import SINGLE_PROCESS, Distributed
from mtlcore.errors import UsageError
from mtlcore.features import Boundary, Features
from mtlcore.inputs import Inputs, image_size, input_tensors
from mtlcore.losses import CrossTaskLoss, Loss, Normalisation, ScalarLoss, TaskLosses, reduce_loss
from mtlcore.models import SAME_RATES, Backbone, BackboneRates, MultiTaskModel, groups_of
from mtlcore.teachers import under_autocast

__all__ = [
    "Learner",
    "Precision",
    "uncompiled",
]

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Learner(nn.Module):
    """Turns a batch into task losses.

    Args:
        model: Backbone and heads.
        losses: A loss per task name.
        cross_task: Any number of losses between tasks.
        balancing: The chain of balancers.
        normalisation: See `mtlcore.losses.reduce_loss`.
        precision: Arithmetic of backbone and heads; predictions and losses are fp32.
        distributed: The processes that train together.
        rates: Factors on the learning rates of the backbone.

    Raises:
        UsageError: The rates need layers that the backbone does not name, or a part of the model is
            wrapped in torch's DistributedDataParallel.

    Attributes:
        context: What balancers may know of the current step; the training loop keeps it up to date.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        losses: Mapping[str, Loss | ScalarLoss],
        cross_task: Sequence[CrossTaskLoss],
        balancing: Balancing,
        normalisation: Normalisation = "valid",
        precision: Precision = "fp32",
        distributed: Distributed = SINGLE_PROCESS,
        rates: BackboneRates = SAME_RATES,
    ) -> None:
        super().__init__()
        self.model = model
        self.losses = nn.ModuleDict({model.tasks[name].key: loss for name, loss in losses.items()})
        self.cross_task = nn.ModuleList(cross_task)
        self.balancing = balancing
        self.normalisation: Normalisation = normalisation
        self.precision: Precision = precision
        self.context = BalancerContext(tasks=tuple(model.tasks), distributed=distributed)
        self.rates = rates
        rates.factors(model.backbone)
        if any(isinstance(module, DistributedDataParallel) for module in self.modules()):
            raise UsageError(
                "the model is wrapped in DistributedDataParallel, which would not see the "
                "gradients of single tasks: hand over the plain module; torchrun ... -m mtlcore "
                "run, or Learner(distributed=...), adds up gradients over processes"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of all tasks."""
        return tuple(self.model.tasks)

    @property
    def distributed(self) -> Distributed:
        """The processes that train together."""
        return self.context.distributed

    @property
    def cross_task_losses(self) -> Iterator[CrossTaskLoss]:
        """The losses between tasks, in order."""
        for loss in self.cross_task:
            assert isinstance(loss, CrossTaskLoss)
            yield loss

    @property
    def views(self) -> int:
        """Number of views of every training sample that a batch must hold."""
        return max((loss.views for loss in self.cross_task_losses), default=1)

    def forward(self, batch: Batch, tasks: Sequence[str], *, separate: bool = False) -> TaskLosses:
        """Compute the losses of those tasks that have a label in the batch, and balance them.

        A task that no loss and no cross-task term uses is absent: its head does not run.

        Args:
            batch: A batch on the learner's device.
            tasks: The tasks that learn.
            separate: Detach the maps that heads read, unless the backbone states a cut; see
                `TaskLosses.boundary`. Parameters of the backbone are then reached from there.

        Raises:
            UsageError: The batch has fewer views of its samples than `views`, or two of the
                cross-task losses and the backbone return a term of the same name.
        """
        cross_task = list(self.cross_task_losses)
        if cross_task and batch.view and max(batch.view) + 1 < self.views:
            raise UsageError(
                f"cross_task: it compares {self.views} views of each sample, and the batch has "
                f"{max(batch.view) + 1}: views are made where a BatchPlan says augment"
            )
        present = batch.present(tasks)
        needed = {*present, *(task for loss in cross_task for task in loss.needs(batch, tasks))}
        running = [task for task in tasks if task in needed]
        features, predictions, boundary = self._run(batch.inputs, running, separate)
        losses = self._supervised(batch, present, features, predictions, boundary)
        maps = losses.maps
        self.context.present = present
        self.context.maps, self.context.batch = maps, batch.first_views() if maps else None
        cross = losses.cross
        cross |= {name: self._in_fp32(term) for name, term in features.terms.items()}
        for loss in cross_task:
            # Graphs must not outlive the step in a module.
            loss.losses = losses.raw if loss.needs_losses else {}
            terms: dict[str, Tensor] = loss(batch, features, predictions)
            loss.losses = {}
            if twice := sorted(cross.keys() & terms.keys()):
                raise UsageError(
                    f"cross_task: {type(loss).__name__} has a term {twice[0]!r}, as another loss "
                    "or the backbone has"
                )
            cross |= terms
        losses.balanced.update(self.balancing.transform(dict(losses.total), self.context))
        return losses

    @contextmanager
    def no_trace(self, inputs: Inputs) -> Iterator[None]:
        """Leave buffers of model and losses, and torch's random streams, as they were before.

        Args:
            inputs: On whose device passes run.
        """
        saved = [(b, b.clone()) for b in (*self.model.buffers(), *self.losses.buffers())]
        device = _device(inputs)
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                yield
        finally:
            with torch.no_grad():
                for buffer, before in saved:
                    buffer.copy_(before)

    def supervised_losses(self, batch: Batch, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Compute the losses of the present tasks, without cross-task terms and balancers.

        Args:
            batch: As in `forward`.
            tasks: As in `forward`.

        Returns:
            Present task -> its loss, early predictions included, with its graph.
        """
        present = batch.present(tasks)
        features, predictions, _ = self._run(batch.inputs, present)
        return dict(self._supervised(batch, present, features, predictions).total)

    @torch.no_grad()
    def evaluate_losses(self, batch: Batch, tasks: Sequence[str]) -> dict[str, float]:
        """Compute the losses of the present tasks again; nothing is balanced, drawn or changed.

        Args:
            batch: As in `forward`.
            tasks: As in `forward`.

        Returns:
            Present task -> its loss before balancing, early predictions included.
        """
        with self.no_trace(batch.inputs):
            losses = self.supervised_losses(batch, tasks)
        return floats(losses)[0]

    @torch.no_grad()
    def trains_on(self, inputs: Inputs) -> bool:
        """Return whether the model can be trained on so few samples; nothing is changed.

        Batch norm needs two values per channel, which the maps of a lone sample may not have. In
        evaluation mode the answer is always yes.

        Args:
            inputs: Those of a batch, on the learner's device.
        """
        with self.no_trace(inputs), uncompiled(self.model.backbone):
            try:
                self._run(inputs, self.tasks)
            except ValueError as error:  # torch has no type of its own for this
                if "more than 1 value per channel" not in str(error):
                    raise
                return False
        return True

    @property
    def dtype(self) -> torch.dtype | None:
        """Arithmetic of the model under autocast; None: none but its own."""
        return _DTYPES[self.precision]

    def predict(self, inputs: Inputs, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the predictions of the named tasks at the inputs' size, in fp32."""
        return self._run(inputs, tasks)[1]

    def loss_of(
        self, task: str, prediction: Tensor, target: Tensor, valid: Tensor, **how: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return a task's loss in its standard unit; `how` is that of `reduce_loss`."""
        loss, prediction, target = self.judged(task, prediction, target)
        return reduce_loss(loss, prediction, target, valid, **how)

    def judged(
        self, task: str, prediction: Tensor, target: Tensor
    ) -> tuple[Loss | ScalarLoss, Tensor, Tensor]:
        """Return a task's loss, and prediction and target in the unit that it judges."""
        model = self.model
        loss = cast("Loss | ScalarLoss", self.losses[model.tasks[task].key])
        if (units := model.units_of(task)) is not None:
            prediction, target = units.standard(prediction), units.standard(target)
        return loss, prediction, target

    def losses_at(
        self,
        parameters: Mapping[str, Tensor],
        batch: Batch,
        tasks: Sequence[str],
        *,
        keep_buffers: bool = True,
        separate: bool = False,
    ) -> TaskLosses:
        """Call `forward` with other parameters.

        Args:
            parameters: Replacements for some or all of `named_parameters()`; gradients reach them.
            batch: As in `forward`.
            tasks: As in `forward`.
            keep_buffers: Leave buffers, such as running statistics, as they are. If False, the
                pass updates them as `forward` does.
            separate: As in `forward`.
        """
        buffers: dict[str, Tensor] = {}
        if keep_buffers:
            buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        losses = torch.func.functional_call(
            self, {**parameters, **buffers}, (batch, tasks), {"separate": separate}
        )
        assert isinstance(losses, TaskLosses)
        return losses

    def task_gradients(
        self, *, entangled: bool = False, distributed: Distributed | None = None
    ) -> TaskGradients:
        """Return a collector of gradients over all parameters.

        Args:
            entangled: Whether a task's loss may reach parameters of other single tasks, as it does
                through the gradient of an inner step.
            distributed: The processes whose gradients are added up; None: those that train.
        """
        model = self.model
        own = {task: model.task_parameters(task) for task in model.tasks}
        if entangled:
            everything = [p for parameters in own.values() for p in parameters]
            own = dict.fromkeys(own, everything)
        return TaskGradients(
            shared=model.shared_parameters(),
            own=own,
            others=[*self.losses.parameters(), *self.cross_task.parameters(),
                    *self.balancing.parameters()],
            scope=self.balancing.scope,
            last=model.last_shared_parameters()
            if self.balancing.blocks is None
            else model.last_blocks(self.balancing.blocks),
            distributed=distributed or self.distributed,
            sums_only=self.balancing.finisher is None,
            batches=self.balancing.batches,
            estimate=self.balancing.estimate,
            factors=isinstance(self.balancing.finisher, GramianBalancer),
        )  # fmt: skip

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups for an optimizer: those that components ask for, and the rest first.

        A group with the key "lr_scale" learns at so many times the rate that it would have without.

        Raises:
            UsageError: A parameter is in two groups.
        """
        groups = groups_of(module for module in self.modules() if module is not self)
        taken = {id(p) for group in groups for p in group["params"]}
        rest = [p for p in self.parameters() if id(p) not in taken and p.requires_grad]
        return self.rates.applied([{"params": rest}, *groups], self.model.backbone)

    def _run(
        self, inputs: Inputs, tasks: Sequence[str], separate: bool = False
    ) -> tuple[Features, dict[str, Tensor], Boundary | None]:
        with under_autocast(inputs, self.dtype):
            features, boundary = self.model.separable_features(inputs, tasks, separate=separate)
            predictions = self.model.predict(features, tasks, image_size(inputs))
        if self.dtype is not None:
            predictions = {task: prediction.float() for task, prediction in predictions.items()}
        return features, predictions, boundary

    def _in_fp32(self, value: Tensor) -> Tensor:
        return value if self.precision == "fp32" else value.float()

    def _supervised(
        self,
        batch: Batch,
        present: Sequence[str],
        features: Features,
        predictions: Mapping[str, Tensor],
        boundary: Boundary | None = None,
    ) -> TaskLosses:
        """Return the losses of single tasks, not balanced yet and without terms."""
        # Supervised losses see view 0 only; indexing is skipped where there is no other.
        rows = [i for i, view in enumerate(batch.view) if view == 0]
        pick = partial(_pick, rows=None if len(rows) == len(batch) else rows)
        # Of all tasks of the run, whether they still learn or not.
        how: dict[str, Any] = {"normalisation": self.normalisation}
        if self.normalisation == "labelled":
            how["labelled"] = [sum(batch.labelled[task][i] for task in self.tasks) for i in rows]
        keep_maps = self.balancing.needs_maps
        raw, maps = {}, {}
        early: dict[str, Tensor] = {}
        for task in present:
            target = pick(batch.targets[task])
            labels = (target, pick(batch.valid[task]))
            size = tuple(target.shape[-2:])
            beside: Tensor | None = None
            for one in self.model.early(features, task, size) if features.early else ():
                seen = pick(self._in_fp32(one.prediction))
                value, on_way = self.loss_of(task, seen, *labels, **how)
                value = one.weight * value
                early[task] = early[task] + value if task in early else value
                if keep_maps and on_way is not None:
                    weighed = one.weight * on_way
                    beside = weighed if beside is None else beside + weighed
            prediction = pick(predictions[task])
            loss, values = self.loss_of(task, prediction, *labels, **how, beside=beside)
            # With maps the whole loss is made of their sum, so that balancers may differentiate it.
            raw[task] = loss if beside is None else loss - early[task]
            if keep_maps and values is not None:
                maps[task] = values
        return TaskLosses(
            raw=raw,
            balanced={},
            maps=maps,
            cut=features.cut,
            boundary=boundary,
            early=early,
        )


@contextmanager
def uncompiled(backbone: Backbone) -> Iterator[None]:
    """Let a compiled backbone run as it is written: a few samples are not worth compiling for."""
    compiled, backbone._compiled_call_impl = backbone._compiled_call_impl, None
    try:
        yield
    finally:
        backbone._compiled_call_impl = compiled


def _device(inputs: Inputs) -> torch.device:
    return inputs.device if isinstance(inputs, Tensor) else input_tensors(inputs)[0].device


def _pick(values: Tensor, rows: list[int] | None) -> Tensor:
    return values if rows is None else values[rows]
