"""One step plan -> one update."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs
import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing import BalancingResult
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.learner import Learner


@attrs.frozen(kw_only=True)
class StepReport:
    """What a step did.

    Args:
        losses: per present task its raw loss.
        cross: per cross-task term its value.
        balancing: weights, cosines and status.
        learning_rate: of the first parameter group.
        skipped: why nothing was learnt, naming the task; None where all went well.
    """

    losses: dict[str, float]
    cross: dict[str, float] = attrs.field(factory=dict)
    balancing: BalancingResult = attrs.field(factory=BalancingResult)
    learning_rate: float = math.nan
    skipped: str | None = None


class Optimizer(abc.ABC):
    """Learns from plans: `Optimizer(learner, **settings)`.

    Whatever it does, a skipped step leaves parameters, buffers and every state as they were.
    """

    @abc.abstractmethod
    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        """Learn from one plan; where in the run it stands is in `learner.context`."""

    @abc.abstractmethod
    def forget(self, parameters: Iterable[Parameter]) -> None:
        """Drop the state (moments) of parameters that were re-initialised."""

    @abc.abstractmethod
    def after_evaluation(self, loss: float) -> None:
        """Hear of the summed validation loss, as the plateau schedule needs."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything it needs to go on, as a tree of tensors and JSON values."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state_dict()` back."""


@attrs.frozen(kw_only=True)
class Schedule:
    """How the learning rate changes over a run; fractions are of the whole run.

    Args:
        name: constant, step, cosine, poly or plateau.
        at: step: where the rate is multiplied by gamma, as fractions of the run.
        gamma: step and plateau: the factor.
        power: poly: the exponent of (1 - progress).
        patience: plateau: evaluations without a lower validation loss before the rate falls.
        warmup: fraction of the run over which the rate rises linearly from zero.
    """

    name: Literal["constant", "step", "cosine", "poly", "plateau"] = "constant"
    at: tuple[float, ...] = (0.5,)
    gamma: float = 0.5
    power: float = 0.9
    patience: int = 10
    warmup: float = 0.0

    def factor(self, progress: float) -> float:
        """What the base rate is multiplied by when `progress` of the run is done."""
        shape = 1.0
        if self.name == "step":
            shape = self.gamma ** sum(progress >= point for point in self.at)
        elif self.name == "cosine":
            shape = 0.5 * (1 + math.cos(math.pi * progress))
        elif self.name == "poly":
            shape = (1 - progress) ** self.power
        # The first step of a warm-up must not be lost to a rate of zero.
        rising = min(1.0, (progress + 1e-3) / self.warmup) if self.warmup else 1.0
        return shape * rising


class Plateau:
    """Counts evaluations without improvement and says how often the rate has fallen."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._best, self._waited = math.inf, 0
        self.falls = 0

    def update(self, loss: float) -> None:
        """Take in one evaluation's loss."""
        if loss < self._best:
            self._best, self._waited = loss, 0
            return
        self._waited += 1
        if self._waited > self._patience:
            self.falls, self._waited = self.falls + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """JSON."""
        return {"best": self._best, "waited": self._waited, "falls": self.falls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state_dict()` back."""
        self._best, self._waited, self.falls = state["best"], state["waited"], state["falls"]


class LossScale:
    """The factor on losses that keeps half-precision gradients from vanishing.

    Halved whenever a gradient is not finite, doubled after 2000 finite steps, as torch's
    `GradScaler` does; that one divides `.grad`, and balancers need their rows divided before.

    Args:
        dynamic: whether there is one; without, the factor is 1 and stays so.
    """

    def __init__(self, dynamic: bool) -> None:
        self._dynamic = dynamic
        self.factor = 2.0**16 if dynamic else 1.0
        self._good = 0

    def update(self, finite: bool) -> None:
        """Take in whether a step's gradient was finite."""
        if not self._dynamic:
            return
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self._good == 2000:
            self.factor, self._good = self.factor * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """JSON."""
        return {"factor": self.factor, "good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state_dict()` back."""
        self.factor, self._good = state["factor"], state["good"]


class GradientDescent(Optimizer):
    """Plain training: forward, balance, one step of a `torch.optim` optimizer.

    Args:
        learner: what to train.
        make: builds the optimizer from parameter groups.
        schedule: of the learning rate; a group may bring its own under the key "schedule".
        clip: largest norm of all gradients together; None: no limit.
    """

    def __init__(
        self,
        learner: Learner,
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        schedule: Schedule,
        clip: float | None,
    ) -> None:
        groups = learner.parameter_groups()
        self._schedules = [group.pop("schedule", schedule) for group in groups]
        self._torch = make(groups)
        self._base_rates = [group["lr"] for group in self._torch.param_groups]
        self._plateau = Plateau(schedule.patience)
        self._clip = clip
        self._scale = LossScale(dynamic=learner.precision == "fp16")
        self._gradients = learner.task_gradients()
        # Listed once: walking the modules in every step takes longer than a small model.
        self._parameters = list(learner.parameters())
        # What a forward pass changes besides computing: running statistics.
        self._buffers = [*learner.model.buffers(), *learner.losses.buffers()]
        self._buffers += [*learner.cross_task.buffers()]
        self._saved = [torch.empty_like(buffer) for buffer in self._buffers]

    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        rate = self._set_rates(learner.context.progress)
        self._copy(self._buffers, self._saved)
        report = self._collect(learner, plan)
        if report.skipped is None:
            if self._scale.factor != 1:
                self._gradients.unscale(self._scale.factor)
            result = self._gradients.apply(learner.balancing, learner.context)
            report = attrs.evolve(report, balancing=result, learning_rate=rate)
            norm = self._clip_gradients() if result.status != "not finite" else math.nan
            finite = math.isfinite(norm)
            self._scale.update(finite)
            if not finite:
                report = attrs.evolve(report, skipped="the gradient is not finite")
        if report.skipped is not None:
            self._gradients.clear()
            self._copy(self._saved, self._buffers)
        else:
            self._torch.step()
            learner.context.losses = report.losses
            learner.balancing.after_step(learner.context)
        self._torch.zero_grad(set_to_none=True)
        return report

    def forget(self, parameters: Iterable[Parameter]) -> None:
        for parameter in parameters:
            self._torch.state.pop(parameter, None)

    def after_evaluation(self, loss: float) -> None:
        self._plateau.update(loss)

    def state_dict(self) -> dict[str, Any]:
        return {
            "torch": self._torch.state_dict(),
            "plateau": self._plateau.state_dict(),
            "scale": self._scale.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._torch.load_state_dict(state["torch"])
        self._plateau.load_state_dict(state["plateau"])
        self._scale.load_state_dict(state["scale"])

    def _set_rates(self, progress: float) -> float:
        groups = zip(self._torch.param_groups, self._base_rates, self._schedules, strict=True)
        for group, base, schedule in groups:
            fallen = schedule.gamma**self._plateau.falls if schedule.name == "plateau" else 1.0
            group["lr"] = base * schedule.factor(progress) * fallen
        return float(self._torch.param_groups[0]["lr"])

    def _collect(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        """Add up gradients over the episodes (micro-batches) of a plan.

        Each task's losses weigh by their share of its valid elements in the plan (of the samples,
        where losses are per sample). So the sum is that of one large batch for losses that are
        means over elements and balancers that are affine in them; not for class-weighted losses,
        and per sample not for a balancer's constant term where a batch lacks a task.
        """
        parts = [self._masses(learner, plan, episode) for episode in plan.episodes]
        totals = {task: sum(masses.get(task, 0.0) for masses in parts) for task in learner.tasks}
        losses: dict[str, float] = {}
        cross: dict[str, float] = {}
        for episode, masses in zip(plan.episodes, parts, strict=True):
            present = plan.batches[episode.support].present(episode.tasks)
            shares = {task: masses[task] / totals[task] for task in present}
            raw, terms, problem = self._collect_episode(learner, plan, episode, shares)
            for task, value in raw.items():
                losses[task] = losses.get(task, 0.0) + shares[task] * value
            for name, value in terms.items():
                cross[name] = cross.get(name, 0.0) + value / len(parts)
            if problem:
                return StepReport(losses=losses, cross=cross, skipped=problem)
        learner.context.present = tuple(losses)
        return StepReport(losses=losses, cross=cross)

    @staticmethod
    def _masses(learner: Learner, plan: LoadedPlan, episode: Episode) -> dict[str, float]:
        batch = plan.batches[episode.support]
        if learner.normalisation == "sample":
            return dict.fromkeys(episode.tasks, float(len(batch)))
        return {task: float(batch.count[task]) for task in episode.tasks}

    def _collect_episode(
        self, learner: Learner, plan: LoadedPlan, episode: Episode, shares: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float], str | None]:
        found = learner(plan.batches[episode.support], episode.tasks)
        losses, cross, balanced = _floats(found.raw, found.cross, found.balanced)
        # A balanced loss can be infinite where the raw one is not (an overflowing weight).
        for kind, values in (("loss", losses), ("term", cross), ("balanced loss", balanced)):
            for name, value in values.items():
                if not math.isfinite(value):
                    return losses, cross, f"the {kind} of {name} is {value}"
        scale = self._scale.factor
        terms = {t: _times(loss, scale * shares[t]) for t, loss in found.balanced.items()}
        extra = [_times(term, scale / len(plan.episodes)) for term in found.cross.values()]
        if learner.balancing.finisher is None:
            if terms or extra:
                self._gradients.collect_sum([*terms.values(), *extra])
        else:
            self._gradients.collect_rows(terms, keep_graph=bool(extra), cut=found.cut)
            if extra:
                self._gradients.collect_sum(extra)
        return losses, cross, None

    def _clip_gradients(self) -> float:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:  # no label in any batch of the plan
            return 0.0
        value = math.hypot(*torch.stack(torch._foreach_norm(gradients)).tolist())
        if self._clip is not None and math.isfinite(value) and value > self._clip:
            torch._foreach_mul_(gradients, self._clip / value)
        return value

    @staticmethod
    def _copy(source: Sequence[Tensor], destination: Sequence[Tensor]) -> None:
        if source:
            with torch.no_grad():
                torch._foreach_copy_(list(destination), list(source))


def _times(loss: Tensor, factor: float) -> Tensor:
    return loss if factor == 1 else loss * factor


def _floats(*groups: dict[str, Tensor]) -> list[dict[str, float]]:
    """Values of several groups of scalars with one transfer from the device."""
    tensors = [value.detach() for group in groups for value in group.values()]
    values = iter(torch.stack(tensors).tolist() if tensors else [])
    return [{name: next(values) for name in group} for group in groups]
