"""IRA: an auxiliary task's classes weigh by what they do to the main task (arXiv 2008.02043)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, final

import attrs
import torch
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext, LossBalancer
from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.ranges import Count, Decay, Positive, ProperFraction, Range
from mtlcore.tasks import Task, refuse_unknown_tasks
from mtlcore_ira.bins import Bins, fit_bins
from mtlcore_ira.weights import ClassWeights, EpsMode, RatioAux, Rule


@final
@attrs.frozen
class _Roles:
    main: str
    auxiliary: tuple[str, ...]


@final
@attrs.frozen
class _Stage:
    """Where the run stands: roles and weights before or after the change, in the warm-up or not."""

    roles: _Roles
    phase: int
    fixed: bool


@final
@attrs.define
class _Seen:
    """What the forward passes of one step have shown; no state, as a skipped step forgets it."""

    context: BalancerContext
    step: int
    sums: dict[str, Tensor] = attrs.field(factory=dict)

    def in_step(self, context: BalancerContext) -> bool:
        """Whether it is of this step."""
        return self.context is context and self.step == context.step


@final
class IRA(LossBalancer):
    """Class-wise weights on the loss of auxiliary tasks (Yim and Kim, arXiv 2008.02043).

    L = L_main + sum_c w_c La_c with La_c = (1/N) sum of the auxiliary loss over the points of class
    c (eqs. 2, 4). After every step (or time unit) t

        g_c = [(Lm_c(t) - Lm_c(t-1)) / Lm_c(0) + eps] / [(La_c(t) - La_c(t-1)) / La_c(0) + eps] La_c

    (eqs. 7, 10; Lm_c is the main loss over the points of auxiliary class c, the last La_c is not
    weighted), and w <- ReLU(w - alpha Adam(g)) (eq. 9). A class whose loss falls while the main
    loss of its points rises gains weight. What the paper leaves open:

    * Losses keep their own valid points; class by class, both are compared over points valid for
      both, on one grid.
    * A class that a time unit lacks is not updated: its moments and its count of updates stay, and
      it is compared with its last loss when it is back. L(0) is its first one that is not zero.
    * A task of one continuous value per place is cut into bins with equally many training labels.
    * With several auxiliary tasks each has weights of its own, against the same main task.

    A step of accumulated batches moves the weights as one large batch would.

    Args:
        main: name of the task that the others are to serve; its loss is not weighted.
        auxiliary: names of the tasks whose classes are weighted; None: all others on the main
            task's grid with classes or a single value. Tasks that are neither weigh 1.
        alpha: how far a weight moves in an update, at most about; the paper's 2e-4 needs thousands
            of updates, and it speaks of larger ones for small or easy data.
        betas: decay of Adam's two running means.
        eps: the small constant of the ratio, and of Adam.
        eps_mode: how it enters the ratio's two parts x: "literal": x + eps, which may cancel a
            negative change; "signed": away from zero; "clip": |x| is at least eps.
        ratio_aux: whether La in the ratio is weighted by w, as eq. 4 defines it. Then a class of
            weight 0 is left with eps for a change, and one enormous g stops it for thousands of
            updates.
        clip: bound of the ratio, and so of |g| in units of the class's auxiliary loss; inf: none.
        every: steps in a time unit; losses are means over it, and weights move at its end.
        smoothing: part of the earlier losses that a running mean keeps; 0: no running mean.
        reference: where L(0) is looked for, "after-warmup" or from the "start" of the run. It only
            scales a class's g, which Adam undoes but for `eps` and `clip`.
        warmup: part of the run, 0 to 1, in which all weights stay 1.
        swap_at: part of the run after which the main and the first auxiliary task change roles,
            with weights of 1 anew and no other warm-up; None: never.
        bins: per task of continuous values.

    Raises:
        UsageError: a setting is out of its range.
    """

    needs_maps = True
    sums_over_ranks = True

    def __init__(
        self,
        *,
        main: str,
        auxiliary: tuple[str, ...] | None = None,
        alpha: Positive = 2e-4,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        eps: Positive = 1e-8,
        eps_mode: EpsMode = "literal",
        ratio_aux: RatioAux = "unweighted",
        clip: Annotated[float, Range(gt=0, le=math.inf)] = 10.0,
        every: Count = 1,
        smoothing: Decay = 0.0,
        reference: Literal["after-warmup", "start"] = "after-warmup",
        warmup: Decay = 0.0,
        swap_at: ProperFraction | None = None,
        bins: Annotated[int, Range(ge=2, le=1_000_000)] = 10,
    ) -> None:
        super().__init__()
        _check(alpha=(alpha, alpha > 0), eps=(eps, eps > 0), every=(every, every >= 1),
               betas=(betas, all(0 <= beta < 1 for beta in betas)), bins=(bins, bins >= 2),
               clip=(clip, clip > 0), smoothing=(smoothing, 0 <= smoothing < 1),
               warmup=(warmup, 0 <= warmup < 1),
               swap_at=(swap_at, swap_at is None or warmup < swap_at < 1))  # fmt: skip
        self._main, self._auxiliary = main, auxiliary
        self._rule = Rule(
            alpha=alpha,
            betas=betas,
            eps=eps,
            eps_mode=eps_mode,
            ratio_aux=ratio_aux,
            clip=clip,
            every=every,
            smoothing=smoothing,
        )
        self._from_start, self._warmup, self._swap_at = reference == "start", warmup, swap_at
        self._number_of_bins = bins
        self._tasks: dict[str, Task] = {}
        self._roles: tuple[_Roles, ...] = ()
        #: Before and after the roles change, the weights of each auxiliary task by its key.
        self.phases = nn.ModuleList(
            nn.ModuleDict() for _ in range(1 if self._swap_at is None else 2)
        )
        self.bins = nn.ModuleDict()
        self._phase = 0
        self._seen: _Seen | None = None

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Make room for the classes of all tasks that are ever auxiliary, and fit bins.

        Raises:
            UsageError: a task named in the settings is not there, or has no classes.
        """
        self._tasks.update((task.name, task) for task in tasks)
        self._roles = self._given_roles()
        for roles, weights in zip(self._roles, self.phases, strict=True):
            assert isinstance(weights, nn.ModuleDict)
            for task in (self._tasks[name] for name in roles.auxiliary):
                continuous = task.dtype != "int64"
                if continuous and task.key not in self.bins:
                    self.bins[task.key] = Bins(task, self._number_of_bins)
                if task.key not in weights:
                    number = self._number_of_bins if continuous else task.channels
                    weights[task.key] = ClassWeights(number)
        if data is not None:
            unknown = {name: bins for name, bins in self._continuous() if not bins.fitted}
            if unknown:
                fit_bins(unknown, data)

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """Return the losses, those of auxiliary tasks as sums weighted by class.

        Args:
            losses: of the present tasks, made of `context.maps` by a mean or another linear rule.
            context: with `maps` and `batch`.

        Raises:
            UsageError: a loss gives no value per place, two tasks are on different grids, or bins
                were not fitted.
        """
        stage = self._stage(context)
        if stage.fixed and not self._from_start:
            return losses
        return {
            task: self._weighed(task, loss, stage, context)
            if task in stage.roles.auxiliary
            else loss
            for task, loss in losses.items()
        }

    def after_step(self, context: BalancerContext) -> None:
        seen, self._seen = self._seen, None
        seen_sums = seen.sums if seen is not None and seen.in_step(context) else {}
        stage = self._stage(context)
        self._phase = stage.phase
        tasks = stage.roles.auxiliary
        anywhere = context.distributed.any_of([task in seen_sums for task in tasks])
        for task in (task for task, there in zip(tasks, anywhere, strict=True) if there):
            weights = self._weights(task, stage.phase)
            sums = seen_sums.get(task, weights.nothing())
            context.distributed.all_reduce([sums])
            weights.learn(sums, self._rule, stage.fixed)

    def reset(self) -> None:
        for weights in self.modules():
            if isinstance(weights, ClassWeights):
                weights.reset()

    def current_weights(self) -> Mapping[str, Mapping[str, float]]:
        """Return, for each auxiliary task, the weight of each class by its name."""
        return {
            task: dict(zip(self._names(task), weights, strict=True))
            for task in (self._roles[self._phase].auxiliary if self._roles else ())
            for weights in [self._weights(task, self._phase).weight.tolist()]
        }

    def get_extra_state(self) -> dict[str, Any]:
        return {"phase": self._phase}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._phase = state["phase"]

    def _stage(self, context: BalancerContext) -> _Stage:
        phase = int(self._swap_at is not None and context.reached(self._swap_at))
        return _Stage(self._roles[phase], phase, not context.reached(self._warmup))

    def _weighed(self, task: str, loss: Tensor, stage: _Stage, context: BalancerContext) -> Tensor:
        values, labels = self._map(task, context), self._classes(task, context)
        weights = self._weights(task, stage.phase)
        if stage.roles.main in context.present:
            sums = self._sums(task, stage.roles.main, labels, weights.nothing(), context)
            if self._seen is None or not self._seen.in_step(context):
                self._seen = _Seen(context, context.step)
            earlier = self._seen.sums.get(task)
            self._seen.sums[task] = sums if earlier is None else earlier + sums
        if not loss.requires_grad:  # nothing learns from it
            return loss
        # What each place counts in the loss, however that is normalised; a constant.
        (share,) = torch.autograd.grad(loss, values, retain_graph=True)
        more = (weights.weight - 1).to(values.dtype).index_select(0, labels.flatten())
        # With weights of 1 this is the loss itself, bit for bit.
        return loss + (share * more.view_as(values) * values).sum()

    @torch.no_grad()
    def _sums(
        self, task: str, main: str, labels: Tensor, nothing: Tensor, context: BalancerContext
    ) -> Tensor:
        """Per class the sums of both losses and the number of points that are valid for both."""
        ours, theirs = self._map(task, context), self._map(main, context)
        if ours.shape != theirs.shape:
            raise UsageError(
                f"balancer ira: the losses of {main} and {task} are on different grids, "
                f"{tuple(theirs.shape)} and {tuple(ours.shape)}"
            )
        valid = _batch(context).valid[task] & _batch(context).valid[main]
        # Points that do not count go to a class of their own: what is summed needs no mask then.
        number = nothing.shape[1]
        places = labels.masked_fill(~valid, number).flatten()
        sums = nn.functional.pad(nothing, (0, 1))
        for total, values in zip(sums, (theirs, ours, torch.ones_like(ours)), strict=True):
            total.index_add_(0, places, values.flatten().to(total.dtype))
        return sums[:, :number].contiguous()

    def _map(self, task: str, context: BalancerContext) -> Tensor:
        values = context.maps.get(task)
        if values is None:
            raise UsageError(
                f"balancer ira: no values per place of the loss of {task}; a loss that is not "
                "made of such values cannot be split by class: choose another one in losses"
            )
        return values

    def _classes(self, task: str, context: BalancerContext) -> Tensor:
        target = _batch(context).targets[task]
        bins = dict(self._continuous()).get(task)
        return target if bins is None else bins.classes(target)

    def _weights(self, task: str, phase: int) -> ClassWeights:
        weights = self.phases[phase]
        assert isinstance(weights, nn.ModuleDict)
        class_weights = weights[self._tasks[task].key]
        assert isinstance(class_weights, ClassWeights)
        return class_weights

    def _continuous(self) -> list[tuple[str, Bins]]:
        fitted = []
        for name, task in self._tasks.items():
            if task.key in self.bins:
                bins = self.bins[task.key]
                assert isinstance(bins, Bins)
                fitted.append((name, bins))
        return fitted

    def _names(self, task: str) -> list[str]:
        bins = dict(self._continuous()).get(task)
        if bins is not None:
            return bins.names()
        given = self._tasks[task].class_names
        if len(set(given)) == self._tasks[task].channels:
            return list(given)
        return [f"class {number}" for number in range(self._tasks[task].channels)]

    def _given_roles(self) -> tuple[_Roles, ...]:
        """Who is main and who auxiliary, in each phase."""
        refuse_unknown_tasks("balancer.main", (self._main,), self._tasks.values())
        refuse_unknown_tasks("balancer.auxiliary", self._auxiliary or (), self._tasks.values())
        if self._main in (self._auxiliary or ()):
            raise UsageError(f"balancer.auxiliary: {self._main} is the main task")
        others = self._auxiliary
        if others is None:
            others = tuple(n for n in self._tasks if n != self._main and self._fits(n, self._main))
        if not others:
            raise UsageError(
                f"balancer ira: no task beside {self._main} has classes, or a single value to cut "
                "into bins, on its grid; it needs an auxiliary one in tasks"
            )
        roles = [_Roles(self._main, others)]
        if self._swap_at is not None:
            roles.append(_Roles(others[0], (self._main, *others[1:])))
        for each in roles:
            for name in each.auxiliary:
                if not self._fits(name, each.main):
                    raise UsageError(
                        f"balancer ira: {name} cannot be auxiliary to {each.main}: it has neither "
                        "classes nor a single value to cut into bins, or lies on another grid"
                    )
        return tuple(roles)

    def _fits(self, name: str, main: str) -> bool:
        task, other = self._tasks[name], self._tasks[main]
        divisible = task.dtype == "int64" or task.channels == 1
        return divisible and task.valid_shape((2, 3)) == other.valid_shape((2, 3))


def _batch(context: BalancerContext) -> Batch:
    assert context.batch is not None, "maps come with the batch that they are of"
    return context.batch


def _check(**settings: tuple[Any, bool]) -> None:
    for name, (value, fine) in settings.items():
        if not fine:
            raise UsageError(f"balancer.{name}: {value} is out of range")
