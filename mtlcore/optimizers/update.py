"""One step of a `torch.optim` optimizer and all that surrounds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, final

import attrs
import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing import (
    SMALL,
    BalancerContext,
    BalancingResult,
    HostReads,
    ValidationLosses,
    refuse_reentrant,
)
from mtlcore.errors import MtlError, outline
from mtlcore.learner import Learner
from mtlcore.losses import CrossTaskLoss, TaskLosses
from mtlcore.metrics import MetricValues
from mtlcore.models import Backbone, Head, StepContext
from mtlcore.optimizers.contract import StepReport
from mtlcore.optimizers.loss_scale import LossScale
from mtlcore.optimizers.schedules import Plateau, Schedule
from mtlcore.optimizers.step_losses import StepLosses
from mtlcore.system import out_of_memory


@final
class Update:
    """One update of all parameters; the building block of optimizers.

    A step calls `begin`, then `add` for every batch that it learns from, then `finish`. Learning
    rates follow their schedules; gradients are scaled, balanced and clipped. Where a loss or a
    gradient is not finite, the step is skipped: parameters, buffers and states stay as they were.

    Args:
        learner: The module to train.
        make: Builds the `torch.optim` optimizer from parameter groups.
        schedule: The schedule of the learning rate; a group may bring its own under the key
            "schedule".
        clip: The largest norm of all gradients together; None: no limit.
        entangled: See `Learner.task_gradients`.
    """

    def __init__(
        self,
        learner: Learner,
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Schedule,
        clip: float | None,
        *,
        entangled: bool = False,
    ) -> None:
        groups = learner.parameter_groups()
        self._schedules = [group.pop("schedule", schedule) for group in groups]
        scales = [group.pop("lr_scale", 1.0) for group in groups]
        self._torch = make(groups)
        rates = zip(self._torch.param_groups, scales, strict=True)
        self._base_rates = [scale * group["lr"] for group, scale in rates]
        self._plateau = Plateau(schedule.patience)
        self._clip = clip
        self._scale = LossScale(dynamic=learner.precision == "fp16")
        self._entangled = entangled
        self._begin_with(learner)
        # Listed once: walking the modules in every step takes longer than a small model.
        self._parameters = list(learner.parameters())
        # Looking for values that are not finite takes one call for all small gradients; of large
        # ones on a processor, norms are read faster; of complex ones, only they are known.
        self._large = [
            p
            for p in self._parameters
            if p.is_complex() or (p.device.type == "cpu" and p.numel() > SMALL)
        ]
        large = set(map(id, self._large))
        self._small = [p for p in self._parameters if id(p) not in large]
        self._found = torch.zeros((), device=self._parameters[0].device)
        self._one = torch.ones_like(self._found)
        # What a forward pass changes besides computing: running statistics.
        self._buffers = [*learner.model.buffers(), *learner.losses.buffers()]
        self._buffers += [*learner.cross_task.buffers()]
        self._saved = [torch.empty_like(buffer) for buffer in self._buffers]
        # torch takes any state for a parameter's; the first step tells whether it was one.
        self._untried = False
        # Several processes exchange losses first.
        device = self._parameters[0].device.type
        self._reads = HostReads(at_once=device == "cpu" or learner.distributed.world_size > 1)
        self._losses = StepLosses(self._reads)
        self._weights: Mapping[str, list[float]] | None = None
        self._separates = False
        # Gradients of single tasks cannot go through one; the first step tells.
        self._may_be_reentrant = learner.balancing.finisher is not None

    @property
    def scale(self) -> float:
        """The factor on losses in a backward pass, by which gradients are divided afterwards."""
        return self._scale.factor

    @property
    def separates(self) -> bool:
        """Whether this step's losses are computed with heads separated from the backbone."""
        return self._separates

    def begin(self, learner: Learner) -> None:
        """Start a step, before its first forward pass."""
        if learner.model.changes_of_freezing != self._freezing:
            self._begin_with(learner)
        self._set_rates(learner.context)
        learner.context.learning_rate = float(self._torch.param_groups[0]["lr"])
        copy_all(self._buffers, self._saved)
        self._reads.forget()
        self._losses = StepLosses(self._reads)
        self._weights = learner.balancing.reused_weights(learner.tasks, learner.context.step)
        self._separates = learner.balancing.scope == "features" and self._weights is None

    def add(
        self,
        learner: Learner,
        losses: TaskLosses,
        shares: Mapping[str, float],
        part: float,
        *,
        retain_graph: bool = False,
        group: int = 0,
    ) -> bool:
        """Run the backward passes of a batch's losses and add the gradients to the step's.

        Args:
            learner: The module that gave the losses.
            losses: Losses with their graphs.
            shares: The factor on each present task's loss.
            part: The factor on cross-task terms.
            retain_graph: Whether another batch uses part of the graph again.
            group: Number of the independent batch that this is, or is a part of.

        Returns:
            Whether a further batch is of use: not where a loss is not finite, so that nothing is
            added and the step will be skipped. On a GPU that is known later.
        """
        self._losses.add(losses, shares, part)
        if self._losses.problem is not None:
            return False
        if self._may_be_reentrant:
            refuse_reentrant(losses.balanced)
            self._may_be_reentrant = not losses.balanced
        terms = {t: _times(loss, self.scale * shares[t]) for t, loss in losses.balanced.items()}
        extra = [_times(term, self.scale * part) for term in losses.cross.values()]
        if learner.balancing.finisher is None:
            if terms or extra:
                self._gradients.collect_sum([*terms.values(), *extra], retain_graph)
        else:
            more = retain_graph or bool(extra)
            if self._weights is None:
                self._gradients.collect_rows(terms, more, losses.cut, losses.boundary, group)
            else:
                self._gradients.collect_weighted(terms, self._weights, more)
            if extra:
                self._gradients.collect_sum(extra, retain_graph)
        return True

    def refuse(self, reason: str, *, overflow: bool = False) -> None:
        """Skip the step because of something that is not finite and was found elsewhere.

        Args:
            reason: What `StepReport.skipped` will say; the first reason of a step stays.
            overflow: Whether it is a gradient, so that the loss scale may be to blame.
        """
        self._losses.problem = self._losses.problem or reason
        if overflow:
            self._scale.update(False)

    def finish(
        self,
        learner: Learner,
        reevaluate: Callable[[], dict[str, float]] | None = None,
        validation: ValidationLosses | None = None,
    ) -> StepReport:
        """Balance, update the parameters and report; or skip the step and restore the buffers.

        Args:
            learner: The module that gave the losses.
            reevaluate: What `BalancerContext.reevaluate` is, if the optimizer can tell.
            validation: Computes the losses of the step's validation batch, times `scale`.
        """
        if learner.distributed.world_size > 1:
            self._losses.agree(learner)
        skipped, result = self._losses.problem, BalancingResult()
        if skipped is None:
            result, finite = self._balance(learner, validation)
            skipped = self._losses.problem
            if validation is not None:
                # Each rank has validation losses of its own, and all skip the step together.
                problems = learner.distributed.all_gather(skipped)
                skipped = next(filter(None, problems), None)
            if not finite:
                skipped = skipped or result.problem or "the gradient is not finite"
        self._reads.read()
        losses, early = self._losses.means()
        if skipped is not None:
            self._gradients.clear()
            learner.balancing.after_skipped_step()
            copy_all(self._saved, self._buffers)
        else:
            self._step()
            learner.balancing.remember(result)
            learner.context.gramian, learner.context.reevaluate = result.gramian, reevaluate
            learner.balancing.after_step(learner.context)
            learner.context.reevaluate = None
            for after_step in self._listeners:
                after_step(learner.context)
        for parameter in self._parameters:
            parameter.grad = None
        return StepReport(
            losses=losses,
            cross=self._losses.cross,
            balancing=result,
            learning_rate=float(self._torch.param_groups[0]["lr"]),
            early=early,
            skipped=skipped,
        )

    def reset_state(self, parameters: Iterable[Parameter]) -> None:
        """Drop the moments of parameters that were re-initialised."""
        for parameter in parameters:
            self._torch.state.pop(parameter, None)

    def after_evaluation(self, metrics: MetricValues) -> None:
        """Hand the validation losses to the plateau schedule."""
        self._plateau.update({task: values["loss"] for task, values in metrics.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return moments, plateau and loss scale."""
        return {
            "torch": self._torch.state_dict(),
            "plateau": self._plateau.state_dict(),
            "scale": self._scale.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._torch.load_state_dict(state["torch"])
        self._untried = True
        self._plateau.load_state_dict(state["plateau"])
        self._scale.load_state_dict(state["scale"])

    def _begin_with(self, learner: Learner) -> None:
        """Look at what learns: gradients of that are collected, and steps are told to that."""
        self._freezing = learner.model.changes_of_freezing
        self._gradients = learner.task_gradients(entangled=self._entangled)
        self._listeners = _listeners(learner)

    def _step(self) -> None:
        """Let the optimizer change the parameters.

        Raises:
            MtlError: It cannot, and has the state of a checkpoint since its last step.
        """
        try:
            self._torch.step()
        except Exception as error:  # whatever it makes of what should be its moments
            if not self._untried or out_of_memory(error):
                raise
            raise MtlError(
                f"the checkpoint's state of the optimizer does not fit it ({outline(error)}): the "
                "file is damaged, or the optimizer cannot go on from what it saves; start a run of "
                "its own with another --out"
            ) from error
        self._untried = False

    def _set_rates(self, context: BalancerContext) -> None:
        groups = zip(self._torch.param_groups, self._base_rates, self._schedules, strict=True)
        for group, base, schedule in groups:
            fallen = schedule.gamma**self._plateau.falls if schedule.name == "plateau" else 1.0
            group["lr"] = base * schedule.factor(context) * fallen

    def _balance(
        self, learner: Learner, validation: ValidationLosses | None
    ) -> tuple[BalancingResult, bool]:
        """Write balanced gradients; return the decision, and whether the gradient is finite."""
        if self.scale != 1:
            self._gradients.unscale(self.scale)
        begin = partial(self._losses.describe, learner.context)
        if self._reads.at_once:
            begin()
        result = self._gradients.apply(
            learner.balancing.finisher,
            learner.context,
            validation=validation,
            reads=self._reads,
            begin=(lambda: None) if self._reads.at_once else begin,
        )
        if alone := {id(p) for p in learner.model.backbone.learn_alone()}:
            for parameter in self._parameters:
                if id(parameter) not in alone:
                    parameter.grad = None
        finite = result.status != "not finite" and self._clip_gradients()
        if not self._reads.at_once:
            self._reads.read()  # where there was nothing to balance or to clip
            if begin() is not None:  # a loss is not finite; nothing was decided
                return BalancingResult(), False
        if self._weights is not None:
            reused = {task: self._weights[task][0] for task in learner.context.present}
            result = attrs.evolve(result, weights=reused)
        self._scale.update(finite)
        return result, finite

    def _clip_gradients(self) -> bool:
        """Scale the gradient down to the norm `clip`; return whether it is finite."""
        known = self._gradients.is_finite
        if self._clip is None:
            return known or self._finite_gradients()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:  # no label in any batch of the plan
            return True
        norms = torch.stack(torch._foreach_norm(gradients))
        if known:
            # The host need not know how far.
            torch._foreach_mul_(gradients, (self._clip / norms.norm()).clamp(max=1))
            return True
        norm = math.hypot(*self._reads.read(norms)[0].tolist())
        if math.isfinite(norm) and norm > self._clip:
            torch._foreach_mul_(gradients, self._clip / norm)
        return math.isfinite(norm)

    def _finite_gradients(self) -> bool:
        small = [g for p in self._small if (g := p.grad) is not None]
        large = [g for p in self._large if (g := p.grad) is not None]
        self._found.zero_()
        if small:
            # What torch's GradScaler calls, at the price of one norm; a factor of one changes
            # nothing.
            torch._amp_foreach_non_finite_check_and_unscale_(small, self._found, self._one)
        (found,) = self._reads.read(self._found)
        return float(found) == 0 and (
            not large or all(map(math.isfinite, torch._foreach_norm(large)))
        )


def _listeners(learner: Learner) -> list[Callable[[StepContext], None]]:
    """Return `after_step` of the parts of the learner, balancers aside, that override it.

    What is frozen does not hear of steps, as its state stays.
    """
    model = learner.model
    parts: list[Backbone | Head | CrossTaskLoss] = [model.backbone]
    parts += [model.head(task) for task in model.tasks]
    parts += learner.cross_task_losses
    idle = {Backbone.after_step, Head.after_step, CrossTaskLoss.after_step}
    return [
        part.after_step
        for part in parts
        if type(part).after_step not in idle and not learner.model.is_frozen(part)
    ]


def copy_all(source: Sequence[Tensor], destination: Sequence[Tensor]) -> None:
    """Copy each tensor of `source` over its counterpart."""
    if source:
        with torch.no_grad():
            torch._foreach_copy_(list(destination), list(source))


def _times(loss: Tensor, factor: float) -> Tensor:
    return loss if factor == 1 else loss * factor
