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

from mtlcore.balancing import SMALL, BalancingResult
from mtlcore.data import Batch
from mtlcore.episodes import LoadedPlan
from mtlcore.learner import Learner
from mtlcore.losses import TaskLosses


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

    Attributes:
        needs_queries: every episode of its plans must have a query batch.
    """

    needs_queries: bool = False

    @abc.abstractmethod
    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        """Learn from one plan; where in the run it stands is in `learner.context`."""

    @abc.abstractmethod
    def reset_state(self, parameters: Iterable[Parameter]) -> None:
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


class Update:
    """One step of a `torch.optim` optimizer and all that surrounds it; optimizers are made of it.

    In a step it is told `begin`, then `add` for every batch that is learnt from, then `finish`. It
    keeps rates to their schedules, scales, balances and clips gradients, and takes back what was
    done where something is not finite.

    Args:
        learner: what to train.
        make: builds the optimizer from parameter groups.
        schedule: of the learning rate; a group may bring its own under the key "schedule".
        clip: largest norm of all gradients together; None: no limit.
        entangled: see `Learner.task_gradients`.
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
        self._torch = make(groups)
        self._base_rates = [group["lr"] for group in self._torch.param_groups]
        self._plateau = Plateau(schedule.patience)
        self._clip = clip
        self._scale = LossScale(dynamic=learner.precision == "fp16")
        self._gradients = learner.task_gradients(entangled=entangled)
        # Listed once: walking the modules in every step takes longer than a small model.
        self._parameters = list(learner.parameters())
        # Looking for values that are not finite takes one call for all small gradients; of large
        # ones on a processor, norms are read faster.
        self._large = [p for p in self._parameters if not p.is_cuda and p.numel() > SMALL]
        large = set(map(id, self._large))
        self._small = [p for p in self._parameters if id(p) not in large]
        self._found = torch.zeros((), device=self._parameters[0].device)
        self._one = torch.ones_like(self._found)
        # What a forward pass changes besides computing: running statistics.
        self._buffers = [*learner.model.buffers(), *learner.losses.buffers()]
        self._buffers += [*learner.cross_task.buffers()]
        self._saved = [torch.empty_like(buffer) for buffer in self._buffers]
        self._losses: dict[str, float] = {}
        self._masses: dict[str, float] = {}
        self._cross: dict[str, float] = {}
        self._problem: str | None = None
        self._weights: Mapping[str, list[float]] | None = None

    @property
    def scale(self) -> float:
        """What losses must be multiplied by before a backward pass, and gradients divided by."""
        return self._scale.factor

    def begin(self, learner: Learner) -> None:
        """Start a step, before its first forward pass."""
        self._set_rates(learner.context.progress)
        copy_all(self._buffers, self._saved)
        self._losses, self._masses, self._cross, self._problem = {}, {}, {}, None
        self._weights = learner.balancing.reused_weights(learner.tasks, learner.context.step)

    def add(
        self,
        learner: Learner,
        found: TaskLosses,
        shares: Mapping[str, float],
        part: float,
        *,
        keep_graph: bool = False,
    ) -> bool:
        """Add the gradients of a batch's losses to the step's, as rows where it needs weights.

        Args:
            found: the losses, with their graphs.
            shares: per present task what its loss counts.
            part: what cross-task terms count.
            keep_graph: whether part of the graph is used again, by another batch.

        Returns:
            Whether they are finite; if not, nothing was added and the step will be skipped.
        """
        losses, cross, balanced = floats(found.raw, found.cross, found.balanced)
        # A balanced loss can be infinite where the raw one is not (an overflowing weight).
        problem = not_finite({"loss": losses, "term": cross, "balanced loss": balanced})
        self._problem = self._problem or problem
        for task, value in losses.items():
            self._losses[task] = self._losses.get(task, 0.0) + shares[task] * value
            self._masses[task] = self._masses.get(task, 0.0) + shares[task]
        for name, value in cross.items():
            self._cross[name] = self._cross.get(name, 0.0) + part * value
        if problem is not None:
            return False
        terms = {t: _times(loss, self.scale * shares[t]) for t, loss in found.balanced.items()}
        extra = [_times(term, self.scale * part) for term in found.cross.values()]
        if learner.balancing.finisher is None:
            if terms or extra:
                self._gradients.collect_sum([*terms.values(), *extra], keep_graph)
        else:
            more = keep_graph or bool(extra)
            if self._weights is None:
                self._gradients.collect_rows(terms, more, found.cut)
            else:
                self._gradients.collect_weighted(terms, self._weights, more)
            if extra:
                self._gradients.collect_sum(extra, keep_graph)
        return True

    def refuse(self, reason: str, *, overflow: bool = False) -> None:
        """Have the step skipped for what is not finite before anything could be added.

        Args:
            reason: as `StepReport.skipped` gives it; the first one of a step stays.
            overflow: whether it is a gradient, as the loss scale may be to blame for.
        """
        self._problem = self._problem or reason
        if overflow:
            self._scale.update(False)

    def finish(self, learner: Learner) -> StepReport:
        """Balance and learn, or take everything back; a task's loss is the mean by its shares."""
        if learner.distributed.world_size > 1:
            self._agree(learner)
        losses = {task: total / self._masses[task] for task, total in self._losses.items()}
        skipped, result = self._problem, BalancingResult()
        if skipped is None:
            learner.context.present, learner.context.losses = tuple(losses), losses
            result, finite = self._balance(learner)
            skipped = None if finite else "the gradient is not finite"
        if skipped is not None:
            self._gradients.clear()
            copy_all(self._saved, self._buffers)
        else:
            self._torch.step()
            learner.balancing.remember(result)
            learner.balancing.after_step(learner.context)
        self._torch.zero_grad(set_to_none=True)
        return StepReport(
            losses=losses,
            cross=self._cross,
            balancing=result,
            learning_rate=float(self._torch.param_groups[0]["lr"]),
            skipped=skipped,
        )

    def _agree(self, learner: Learner) -> None:
        """Let every rank know what all of them saw: they learn, or skip the step, together."""
        random = learner.context.generator
        mine = (self._losses, self._masses, self._cross)
        state = None if random is None else random.get_state()
        found = learner.distributed.all_gather((mine, self._problem, state))
        losses, masses, cross = (
            _summed(parts) for parts in zip(*(f[0] for f in found), strict=True)
        )
        # In the order of the run's tasks, which a rank without some of them would not keep.
        self._losses = {task: losses[task] for task in learner.tasks if task in losses}
        self._masses, self._cross = masses, cross
        self._problem = next((f[1] for f in found if f[1] is not None), None)
        # Loss balancers may have drawn more where more tasks have labels.
        drawn = found[0][2]
        if random is not None and drawn is not None:
            random.set_state(drawn)

    def reset_state(self, parameters: Iterable[Parameter]) -> None:
        """Drop the moments of these parameters."""
        for parameter in parameters:
            self._torch.state.pop(parameter, None)

    def after_evaluation(self, loss: float) -> None:
        """Take in the summed validation loss."""
        self._plateau.update(loss)

    def state_dict(self) -> dict[str, Any]:
        """Moments, plateau and scale."""
        return {
            "torch": self._torch.state_dict(),
            "plateau": self._plateau.state_dict(),
            "scale": self._scale.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state_dict()` back."""
        self._torch.load_state_dict(state["torch"])
        self._plateau.load_state_dict(state["plateau"])
        self._scale.load_state_dict(state["scale"])

    def _set_rates(self, progress: float) -> None:
        groups = zip(self._torch.param_groups, self._base_rates, self._schedules, strict=True)
        for group, base, schedule in groups:
            fallen = schedule.gamma**self._plateau.falls if schedule.name == "plateau" else 1.0
            group["lr"] = base * schedule.factor(progress) * fallen

    def _balance(self, learner: Learner) -> tuple[BalancingResult, bool]:
        """What was decided, and whether the gradient is finite."""
        if self.scale != 1:
            self._gradients.unscale(self.scale)
        result = self._gradients.apply(learner.balancing.finisher, learner.context)
        if self._weights is not None:
            reused = {task: self._weights[task][0] for task in learner.context.present}
            result = attrs.evolve(result, weights=reused)
        finite = result.status != "not finite" and self._clip_gradients()
        self._scale.update(finite)
        return result, finite

    def _clip_gradients(self) -> bool:
        """Shorten the gradient to `clip`; whether it is finite."""
        if self._clip is None:
            return self._finite_gradients()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:  # no label in any batch of the plan
            return True
        norm = math.hypot(*torch.stack(torch._foreach_norm(gradients)).tolist())
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
        return float(self._found) == 0 and (
            not large or all(map(math.isfinite, torch._foreach_norm(large)))
        )


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
        self._update = Update(learner, make, schedule, clip)

    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        """Add up gradients over the episodes (micro-batches) of a plan, then learn.

        Each task's losses weigh by their share of its valid elements in the plan (of the samples,
        where losses are per sample). So the sum is that of one large batch for losses that are
        means over elements and balancers that are affine in them; not for class-weighted losses,
        and per sample not for a balancer's constant term where a batch lacks a task.
        """
        self._update.begin(learner)
        used = [(plan.batches[episode.support], episode.tasks) for episode in plan.episodes]
        for (batch, tasks), (shares, part) in zip(used, shares_of(learner, used), strict=True):
            # One of several processes may have no sample of a small batch.
            if len(batch) and not self._update.add(learner, learner(batch, tasks), shares, part):
                break
        return self._update.finish(learner)

    def reset_state(self, parameters: Iterable[Parameter]) -> None:
        self._update.reset_state(parameters)

    def after_evaluation(self, loss: float) -> None:
        self._update.after_evaluation(loss)

    def state_dict(self) -> dict[str, Any]:
        return self._update.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._update.load_state_dict(state)


def shares_of(
    learner: Learner, used: Sequence[tuple[Batch, Sequence[str]]]
) -> list[tuple[dict[str, float], float]]:
    """What each batch counts: per present task its share of what the task has in all batches.

    That is of its valid elements, or of the samples where losses are per sample; batches of other
    ranks count too. The second figure is the batch's share of all samples.
    """
    if len(used) == 1 and learner.distributed.world_size == 1:
        batch, tasks = used[0]
        return [(dict.fromkeys(batch.present(tasks), 1.0), 1.0)]
    masses = [
        {
            task: float(len(batch) if learner.normalisation == "sample" else batch.count[task])
            for task in tasks
        }
        for batch, tasks in used
    ]
    totals = [sum(mass.get(task, 0.0) for mass in masses) for task in learner.tasks]
    *totals, samples = learner.distributed.all_reduce_floats(
        [*totals, sum(len(batch) for batch, _ in used)]
    )
    of = dict(zip(learner.tasks, totals, strict=True))
    return [
        ({task: mass[task] / of[task] for task in batch.present(tasks)}, len(batch) / samples)
        for (batch, tasks), mass in zip(used, masses, strict=True)
    ]


def floats(*groups: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """Values of several groups of scalars with one transfer from the device."""
    tensors = [value.detach() for group in groups for value in group.values()]
    values = iter(torch.stack(tensors).tolist() if tensors else [])
    return [{name: next(values) for name in group} for group in groups]


def not_finite(values: Mapping[str, Mapping[str, float]]) -> str | None:
    """The first value that is not finite in words, by kind and name; None where all are."""
    for kind, named in values.items():
        for name, value in named.items():
            if not math.isfinite(value):
                return f"the {kind} of {name} is {value}"
    return None


def _summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def copy_all(source: Sequence[Tensor], destination: Sequence[Tensor]) -> None:
    """Copy tensors over others."""
    if source:
        with torch.no_grad():
            torch._foreach_copy_(list(destination), list(source))


def _times(loss: Tensor, factor: float) -> Tensor:
    return loss if factor == 1 else loss * factor
