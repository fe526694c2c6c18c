"""MTML's optimizer: a step that makes the next step on any set of tasks a good one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.data import Batch
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.learner import Learner
from mtlcore.metrics import MetricValues
from mtlcore.optimizers import (
    Optimizer,
    Schedule,
    StepReport,
    Update,
    copy_all,
    floats,
    not_finite,
    shares_of,
)
from mtlcore.ranges import Count, Decay, LearningRate, NonNegative, Positive

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
)

Scope = Literal["all", "heads", "heads+norm"]

# A batch with what its losses count: per task, and of terms between tasks.
_Part = tuple[Batch, tuple[dict[str, float], float]]


class MTML(Optimizer):
    """Multi-task meta-learning, MAML over subsets of the tasks (Upadhyay et al. 2022, eqs. 2-3).

    For each episode e, with tasks T_e, a support and a query batch, and from the same theta:

        theta_e = theta - inner_lr * d/dtheta sum_{i in T_e} L_i(theta, support)      (inner step)
        g_i = 1/E sum_e d/dtheta L_i(theta_e, query)                                  (i in T_e)

    and then one AdamW step along what the run's balancing makes of the g_i. The losses are those
    after the loss balancers, whose own parameters (uncertainty's s) are part of theta; a balancer
    of gradients is asked once, about the g_i, and has no part in inner steps. Terms between tasks
    count in both losses. The mean over all E episodes of the step is the paper's sum divided by E.

    First order (the default) takes d theta_e / d theta for 1: the gradient at theta_e is applied at
    theta. Second order goes through the inner step, so that a task's query loss also reaches the
    heads of the episode's other tasks; what a balancer weighs heads with then weighs that as well.

    The inner steps are plain SGD, without momentum, decay, schedule or clipping. They leave running
    statistics (batch norm) alone; the passes over query batches, at theta_e, update them, once per
    episode. What no episode's loss reaches is not touched: a task without a label in the step keeps
    its head, its moments and its s bit for bit.

    Episodes of the same tasks (from accumulated steps) are parts of one: their support batches
    together make its inner step, so that a split batch gives the step of the whole one, under the
    same conditions as in plain training.

    `restore = false` is what the released code does to the parameters: the episodes' inner steps
    follow one another, each from where the last one ended, and theta is never restored. All query
    losses are taken at the common end point, where the AdamW step starts too. It differs from the
    release in that its inner steps are SGD there as well (the release has AdamW of its own), and
    leave running statistics alone, and in that the gradients are averaged (there summed, which
    AdamW all but does not notice).

    Memory does not grow with the number of episodes, except under balancers whose scope is
    "features" or "last_shared", which keep every graph until the end of the step.

    Args:
        learner: what to train.
        lr: learning rate of the outer step.
        betas: decay of AdamW's two running means.
        eps: added to AdamW's denominator.
        weight_decay: part of a weight taken off per outer step, times the learning rate.
        schedule: of the outer learning rate.
        clip: largest norm of all outer gradients together; None: no limit.
        inner_lr: learning rate of the inner steps.
        inner_steps: number of them; 1 in the paper.
        inner_scope: what they change: all parameters, those that one task alone reaches ("heads"),
            or these and scales and shifts of normalisation layers ("heads+norm").
        second_order: take the outer gradient through the inner steps.
        restore: start every episode from the same parameters, and the outer step too.

    Raises:
        UsageError: a number out of its range, or settings that exclude one another.
    """

    needs_queries = True

    def __init__(
        self,
        learner: Learner,
        *,
        lr: LearningRate = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 1e-2,
        schedule: Schedule = Schedule(),
        clip: Positive | None = None,
        inner_lr: Positive = 1e-2,
        inner_steps: Count = 1,
        inner_scope: Scope = "all",
        second_order: bool = False,
        restore: bool = True,
    ) -> None:
        if not 0 < inner_lr < math.inf:
            raise UsageError(f"optimizer.inner_lr: {inner_lr} is not a positive number")
        if inner_steps < 1:
            raise UsageError(f"optimizer.inner_steps: {inner_steps} is not a number of steps")
        if second_order and not restore:
            raise UsageError(
                "optimizer.second_order: the outer gradient cannot go through inner steps that "
                "restore = false makes final; choose one of the two"
            )
        if second_order and learner.balancing.scope == "features":
            raise UsageError(
                "optimizer.second_order: through the inner step the trunk reaches losses past its "
                "features, and the balancer compares gradients there alone; use first order or "
                "another balancer"
            )
        if second_order and learner.distributed.world_size > 1:
            raise UsageError(
                "optimizer.second_order: the gradient of an inner step that several processes "
                "made together is not known to any of them; use one process, or first order"
            )
        if second_order and any(m._compiled_call_impl is not None for m in learner.modules()):
            raise UsageError(
                "optimizer.second_order: torch's compiler has no second derivatives; choose "
                "training.compile=false, or first order"
            )
        self._inner_lr, self._inner_steps = inner_lr, inner_steps
        self._second_order, self._restore = second_order, restore

        def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
            return torch.optim.AdamW(
                groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
            )

        self._update = Update(learner, make, schedule, clip, entangled=second_order)
        self._inner = _in_scope(learner, inner_scope)
        saved = [] if restore else [*self._inner.values()]
        self._saved = [(p, torch.empty_like(p, requires_grad=False)) for p in saved]

    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        """Update once from the episodes of a plan; the reported losses are those of query batches.

        Raises:
            UsageError: an episode has no query batch.
        """
        groups = [
            (tasks, _counted(learner, plan, tasks, [e.support for e in episodes]),
             _counted(learner, plan, tasks, [_query(e) for e in episodes]),
             len(episodes) / len(plan.episodes))
            for tasks, episodes in _by_tasks(plan.episodes).items()
        ]  # fmt: skip
        # Nothing below ends early where something is not finite: `Update` knows, and processes
        # that train together stay together.
        self._update.begin(learner)
        copy_all([p for p, _ in self._saved], [kept for _, kept in self._saved])
        if not self._restore:
            for tasks, support, _, _ in groups:
                adapted = self._adapt(learner, tasks, support)
                copy_all([*adapted.values()], [self._inner[name] for name in adapted])
        for tasks, support, query, weight in groups:
            adapted = self._adapt(learner, tasks, support) if self._restore else {}
            for number, (batch, (shares, part)) in enumerate(query):
                if len(batch):
                    found = learner.losses_at(
                        adapted,
                        batch,
                        tasks,
                        keep_buffers=False,
                        separate=self._update.separates,
                    )
                    shares = {task: weight * share for task, share in shares.items()}
                    # Through the inner step the next batch comes back to the same graph.
                    keep = self._second_order and number < len(query) - 1
                    self._update.add(learner, found, shares, weight * part, retain_graph=keep)
        report = self._update.finish(learner)
        if report.skipped is not None:
            copy_all([kept for _, kept in self._saved], [p for p, _ in self._saved])
        return report

    def reset_state(self, parameters: Iterable[Parameter]) -> None:
        self._update.reset_state(parameters)

    def after_evaluation(self, metrics: MetricValues) -> None:
        self._update.after_evaluation(metrics)

    def state_dict(self) -> dict[str, Any]:
        return self._update.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._update.load_state_dict(state)

    def _adapt(
        self, learner: Learner, tasks: Sequence[str], support: Sequence[_Part]
    ) -> dict[str, Tensor]:
        """Return what the inner steps change, by name; empty where the support has no label."""
        adapted: dict[str, Tensor] = {}
        for _ in range(self._inner_steps):
            at: Mapping[str, Tensor] = {**self._inner, **adapted}
            found = self._inner_gradient(learner, adapted, [*at.values()], tasks, support)
            rate = self._inner_lr / self._update.scale
            # Autograd sees this subtraction, but through the gradient only in second order. That
            # makes the gradient at the adapted point the one at theta, without a copy.
            adapted |= {
                name: torch.sub(at[name], gradient, alpha=rate)
                for name, gradient in zip(at, found, strict=True)
                if gradient is not None
            }
        return adapted

    def _inner_gradient(
        self,
        learner: Learner,
        adapted: Mapping[str, Tensor],
        at: Sequence[Tensor],
        tasks: Sequence[str],
        support: Sequence[_Part],
    ) -> list[Tensor | None]:
        """Of the episode's losses, scaled, with respect to `at`; None where they do not reach."""
        sums: list[Tensor | None] = [None] * len(at)
        for batch, (shares, part) in support:
            if not len(batch):
                continue
            found = learner.losses_at(adapted, batch, tasks)
            raw, cross, balanced = floats(found.raw, found.cross, found.balanced)
            problem = not_finite({"loss": raw, "term": cross, "balanced loss": balanced})
            if problem is not None:
                self._update.refuse(f"{problem} in an inner step")
            terms = [loss * shares[task] for task, loss in found.balanced.items()]
            terms += [term * part for term in found.cross.values()]
            if terms:
                total = torch.stack(terms).sum() * self._update.scale
                gradients = torch.autograd.grad(
                    total, at, create_graph=self._second_order, allow_unused=True
                )
                sums = [_added(a, b) for a, b in zip(sums, gradients, strict=True)]
        if learner.distributed.world_size > 1:
            sums = self._over_ranks(learner, at, sums)
        there = [gradient.detach() for gradient in sums if gradient is not None]
        if there and not all(map(math.isfinite, torch.stack(torch._foreach_norm(there)).tolist())):
            self._update.refuse("the gradient of an inner step is not finite", overflow=True)
        return sums

    def _over_ranks(
        self, learner: Learner, at: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        anywhere = learner.distributed.any_of([gradient is not None for gradient in gradients])
        sums = [
            (torch.zeros_like(value) if gradient is None else gradient.clone()) if found else None
            for value, gradient, found in zip(at, gradients, anywhere, strict=True)
        ]
        learner.distributed.all_reduce([total for total in sums if total is not None])
        return sums


def _in_scope(learner: Learner, scope: Scope) -> dict[str, Parameter]:
    """By name the parameters that inner steps may change."""
    found = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    if scope == "all":
        return found
    model = learner.model
    chosen = {id(p) for task in model.tasks for p in model.task_parameters(task)}
    if scope == "heads+norm":
        norms = (part for part in model.modules() if isinstance(part, _NORMS))
        chosen |= {id(p) for norm in norms for p in norm.parameters()}
    return {name: p for name, p in found.items() if id(p) in chosen}


def _by_tasks(episodes: Sequence[Episode]) -> dict[tuple[str, ...], list[Episode]]:
    groups: dict[tuple[str, ...], list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.tasks, []).append(episode)
    return groups


def _query(episode: Episode) -> int:
    if episode.query is None:
        raise UsageError(
            "optimizer mtml: an episode has no query batch to judge the adapted model by; use "
            "episodes.name=task-powerset (or another sampler with queries)"
        )
    return episode.query


def _counted(
    learner: Learner, plan: LoadedPlan, tasks: Sequence[str], numbers: Sequence[int]
) -> list[_Part]:
    batches = [plan.batches[number] for number in numbers]
    counts = shares_of(learner, [(batch, tasks) for batch in batches])
    return list(zip(batches, counts, strict=True))


def _added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return first if second is None else second
    return first + second
