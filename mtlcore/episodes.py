"""What a step works on: plans, not tensors, so that workers can fetch ahead."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence

import attrs
import torch

from mtlcore.data import Batch

__all__ = [
    "BatchPlan",
    "Episode",
    "EpisodeSampler",
    "LoadedPlan",
    "StepPlan",
    "accumulated",
    "batch_bounds",
    "in_order",
    "share_of",
    "shuffled_batches",
]


@attrs.frozen
class BatchPlan:
    """Which samples to load.

    Args:
        split: of the dataset.
        indices: into the split.
        seed: of everything random in loading them.
        augment: whether to change them at random, as training does.
    """

    split: str
    indices: tuple[int, ...]
    seed: int = 0
    augment: bool = False


@attrs.frozen
class Episode:
    """Tasks to learn together, and from which batches of the step.

    Args:
        tasks: names; a task that stopped early is simply not among them.
        support: number of the batch in the plan that is learnt from.
        query: number of the batch that judges the adapted model; None in plain training.
    """

    tasks: tuple[str, ...]
    support: int
    query: int | None = None


@attrs.frozen
class StepPlan:
    """One step: plain training has one batch and one episode, meta-learning two and many."""

    batches: tuple[BatchPlan, ...]
    episodes: tuple[Episode, ...]


@attrs.frozen
class LoadedPlan:
    """A plan whose batches are loaded."""

    batches: tuple[Batch, ...]
    episodes: tuple[Episode, ...]


class EpisodeSampler(abc.ABC):
    """Plans the steps of an epoch: `EpisodeSampler(tasks, splits, **settings)`.

    `tasks` are names, `splits` the number of samples per split.

    Attributes:
        has_queries: every episode that it plans has a query batch.
    """

    has_queries: bool = False

    @abc.abstractmethod
    def steps(self, batch_size: int) -> int:
        """Number of plans in an epoch."""

    @abc.abstractmethod
    def epoch(
        self, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> Iterator[StepPlan]:
        """The plans of one epoch for the tasks still learning, drawn from `generator` alone.

        Tasks stop early, down to a last one. Where fewer are left than a sampler can combine, it
        plans one episode of all that are left; the number of plans stays `steps(batch_size)`.
        """


def shuffled_batches(
    split: str, size: int, batch_size: int, generator: torch.Generator
) -> list[BatchPlan]:
    """Every index of a split once, in random order, in batches.

    A remainder of one sample joins the batch before it: batch norm cannot train on one small map.
    """
    order = torch.randperm(size, generator=generator).tolist()
    bounds = batch_bounds(size, batch_size)
    seeds = torch.randint(2**62, (len(bounds),), generator=generator).tolist()
    return [
        BatchPlan(split, tuple(order[begin:end]), seed, augment=True)
        for (begin, end), seed in zip(bounds, seeds, strict=True)
    ]


def batch_bounds(size: int, batch_size: int) -> list[tuple[int, int]]:
    """Begin and end of each batch of an epoch."""
    begins = list(range(0, size, batch_size))
    if len(begins) > 1 and batch_size > 1 and size - begins[-1] == 1:
        begins.pop()
    return list(zip(begins, [*begins[1:], size], strict=True))


def accumulated(plans: Iterable[StepPlan], number: int) -> list[StepPlan]:
    """Every `number` plans as one step; what is left over at the end makes a smaller one."""
    plans = list(plans)
    if number == 1:
        return plans
    return [_joined(plans[begin : begin + number]) for begin in range(0, len(plans), number)]


def _joined(plans: Sequence[StepPlan]) -> StepPlan:
    batches: list[BatchPlan] = []
    episodes: list[Episode] = []
    for plan in plans:
        shift = len(batches)
        batches += plan.batches
        for episode in plan.episodes:
            query = None if episode.query is None else episode.query + shift
            episodes.append(attrs.evolve(episode, support=episode.support + shift, query=query))
    return StepPlan(tuple(batches), tuple(episodes))


def share_of(plan: StepPlan, rank: int, size: int) -> StepPlan:
    """What one of `size` processes loads of a plan: every `size`-th sample of each batch."""
    batches = tuple(
        attrs.evolve(batch, indices=batch.indices[rank::size], seed=batch.seed + rank)
        for batch in plan.batches
    )
    return attrs.evolve(plan, batches=batches)


def in_order(split: str, size: int, batch_size: int, used: int | None = None) -> list[BatchPlan]:
    """Plans that go through a split once, in order; or through `used` evenly spread samples."""
    used = size if used is None else min(used, size)
    return [
        BatchPlan(split, tuple(i * size // used for i in range(begin, end)))
        for begin, end in batch_bounds(used, batch_size)
    ]
