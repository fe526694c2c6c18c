"""Plans of training steps: which samples to load and which tasks to learn from them.

Plans hold indices, not tensors, so that worker processes can load batches ahead of time.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch

from mtlcore.balancing import BalancerContext
from mtlcore.data import Batch
from mtlcore.metrics import MetricValues

__all__ = [
    "BatchPlan",
    "Episode",
    "EpisodeSampler",
    "LoadedPlan",
    "StepPlan",
    "StepSampler",
    "batch_bounds",
    "in_order",
    "joined",
    "share_of",
    "shuffled_batches",
    "with_validation",
]


@attrs.frozen
class BatchPlan:
    """The samples of one batch.

    Args:
        split: of the dataset.
        indices: of the samples in the split.
        seed: of everything random in loading them.
        augment: whether to augment them, as training does.
    """

    split: str
    indices: tuple[int, ...]
    seed: int = 0
    augment: bool = False


@attrs.frozen
class Episode:
    """Tasks that are learnt together, and the batches of the step that they are learnt from.

    Args:
        tasks: their names; a task that stopped early is not among them.
        support: index in the plan of the batch to learn from.
        query: index in the plan of the batch on which the adapted model is evaluated; None in
            plain training.
        group: number of the independent batch (`Balancer.batches`) that the support batch is, or
            is a part of.
    """

    tasks: tuple[str, ...]
    support: int
    query: int | None = None
    group: int = 0


@attrs.frozen
class StepPlan:
    """One step: one batch and one episode in plain training, more of both in meta-learning.

    Samplers plan a single group, and no validation: the core makes a step of several plans where a
    balancer needs several independent batches.

    Args:
        batches: All that the step loads.
        episodes: What it learns from.
        validation: Episodes whose support batches are parts of the validation batch; nobody learns
            from them.
    """

    batches: tuple[BatchPlan, ...]
    episodes: tuple[Episode, ...]
    validation: tuple[Episode, ...] = ()


@attrs.frozen
class LoadedPlan:
    """A `StepPlan` with its batches loaded."""

    batches: tuple[Batch, ...]
    episodes: tuple[Episode, ...]
    validation: tuple[Episode, ...] = ()

    def to(self, device: torch.device) -> LoadedPlan:
        """Return the plan with its batches on another device."""
        return attrs.evolve(self, batches=tuple(batch.to(device) for batch in self.batches))


class EpisodeSampler(abc.ABC):
    """A planner of the steps of an epoch, made as `EpisodeSampler(tasks, splits, **settings)`.

    `tasks` are names of tasks; `splits` maps each split to its number of samples.

    Plans depend on the state, the generator and the arguments alone. The state changes where plans
    are drawn, in `after_step` and in `after_evaluation`; what it learns there counts for plans that
    are not drawn yet. Several processes draw the same plans, each for itself.

    Attributes:
        has_queries: whether every episode that it plans has a query batch.
        horizon: number of steps whose plans are drawn at a time; None: those of a whole epoch. A
            number needs a `StepSampler`.
    """

    has_queries: bool = False
    horizon: int | None = None

    @abc.abstractmethod
    def steps(self, batch_size: int) -> int:
        """Return the number of plans in an epoch."""

    @abc.abstractmethod
    def epoch(
        self, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> Iterator[StepPlan]:
        """Yield the plans of one epoch, `steps(batch_size)` of them.

        Args:
            tasks: names of the tasks that are still learning; tasks may stop early until one is
                left. Where they are fewer than the sampler combines, it plans one episode of all
                of them.
            batch_size: number of samples in a batch.
            generator: the only source of randomness, on the CPU.
        """

    def after_step(self, context: BalancerContext) -> None:
        """Learn from a step that was taken; a skipped one never calls this.

        Args:
            context: of the step. `losses` holds the mean loss of each present task, the same in
                every process; `maps` and `batch` hold this process's part of the step.
        """
        return

    def after_evaluation(self, metrics: MetricValues) -> None:
        """Learn from an evaluation on the validation split.

        Args:
            metrics: task -> metric -> value, "loss" among them, of every task of the run that
                learns or has stopped early. A value is NaN where nothing was valid.
        """
        return

    def state_dict(self) -> dict[str, Any]:
        """Return all that plans depend on, as a tree of tensors and JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        return


class StepSampler(EpisodeSampler):
    """A sampler that plans step by step, so that plans can follow what the run has learnt so far.

    Batches are loaded ahead within a block of `horizon` steps only: the larger it is, the less
    training waits for data, and the later plans hear of what happened.

    Attributes:
        horizon: number of steps that are planned at a time.
    """

    horizon: int | None = 1

    @abc.abstractmethod
    def plan(
        self, number: int, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> StepPlan:
        """Return the next plan.

        Args:
            number: of the plan in its epoch, from 0 to `steps(batch_size) - 1`. An epoch's plans
                are asked for in order.
            tasks: names of the tasks that are still learning, the same during an epoch.
            batch_size: number of samples in a batch.
            generator: the only source of randomness, on the CPU.
        """

    def epoch(
        self, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> Iterator[StepPlan]:
        for number in range(self.steps(batch_size)):
            yield self.plan(number, tasks, batch_size, generator)


def shuffled_batches(
    split: str, size: int, batch_size: int, generator: torch.Generator
) -> list[BatchPlan]:
    """Return batches that hold every sample of a split once, in random order.

    If a single sample would be left over, it joins the last batch, as batch norm cannot train on
    one sample whose map is a single pixel.
    """
    order = torch.randperm(size, generator=generator).tolist()
    bounds = batch_bounds(size, batch_size)
    seeds = torch.randint(2**62, (len(bounds),), generator=generator).tolist()
    return [
        BatchPlan(split, tuple(order[begin:end]), seed, augment=True)
        for (begin, end), seed in zip(bounds, seeds, strict=True)
    ]


def batch_bounds(size: int, batch_size: int) -> list[tuple[int, int]]:
    """Return begin and end of each batch of an epoch."""
    begins = list(range(0, size, batch_size))
    if len(begins) > 1 and batch_size > 1 and size - begins[-1] == 1:
        begins.pop()
    return list(zip(begins, [*begins[1:], size], strict=True))


def joined(plans: Sequence[StepPlan], groups: int = 1) -> StepPlan:
    """Return one step of several plans.

    Args:
        plans: of single groups.
        groups: number of independent batches of the step, to which the plans belong in turn.
    """
    if len(plans) == 1:
        return plans[0]
    batches: list[BatchPlan] = []
    episodes: list[Episode] = []
    for number, plan in enumerate(plans):
        shift, group = len(batches), number % groups
        batches += plan.batches
        for episode in plan.episodes:
            query = None if episode.query is None else episode.query + shift
            episodes.append(
                attrs.evolve(episode, support=episode.support + shift, query=query, group=group)
            )
    return StepPlan(tuple(batches), tuple(episodes))


def with_validation(plan: StepPlan, batches: Sequence[BatchPlan], tasks: Sequence[str]) -> StepPlan:
    """Return a step with the parts of a validation batch."""
    first = len(plan.batches)
    return StepPlan(
        (*plan.batches, *batches),
        plan.episodes,
        tuple(Episode(tuple(tasks), first + number) for number in range(len(batches))),
    )


def share_of(plan: StepPlan, rank: int, size: int) -> StepPlan:
    """Return what one process loads of a plan: every `size`-th sample of each batch.

    Args:
        plan: of all processes.
        rank: of the process.
        size: number of processes.
    """
    batches = tuple(
        attrs.evolve(batch, indices=batch.indices[rank::size], seed=batch.seed + rank)
        for batch in plan.batches
    )
    return attrs.evolve(plan, batches=batches)


def in_order(split: str, size: int, batch_size: int, used: int | None = None) -> list[BatchPlan]:
    """Return batches that hold a split once, in order, or `used` samples spread evenly over it."""
    used = size if used is None else min(used, size)
    return [
        BatchPlan(split, tuple(i * size // used for i in range(begin, end)))
        for begin, end in batch_bounds(used, batch_size)
    ]
