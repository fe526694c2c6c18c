"""Episodes of every subset of the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import attrs
import torch

from mtlcore.episodes import (
    BatchPlan,
    Episode,
    EpisodeSampler,
    StepPlan,
    batch_bounds,
    shuffled_batches,
)
from mtlcore.errors import UsageError
from mtlcore.ranges import Count, ProperFraction


class TaskPowerset(EpisodeSampler):
    """Episodes of two or more tasks each, all from the same two batches (Upadhyay et al. 2022).

    N tasks have 2^N - N - 1 such subsets; two have one, so that every episode is of both (the
    paper's experiments 4.1 and 4.2). Every step has one support batch, which episodes adapt to, and
    one query batch, which judges them. Both are of the training samples: an evenly spread part of
    them, always the same, is only ever asked for queries, so that the split that early stopping and
    the best epoch are chosen on is not learnt from (the released code uses one validation split for
    all of these). An epoch shows every support sample once; query samples are gone through, in ever
    new orders, as often as that takes.

    Tasks that stopped early are in no episode. Where two are left there is one episode; the last
    one alone is an episode by itself.

    Args:
        episodes: number of subsets drawn anew for each step, without repetition; None: all.
        query: part of the training samples that is kept for queries.

    Raises:
        UsageError: fewer than two tasks, too few samples, or a number out of its range.
    """

    has_queries = True

    def __init__(
        self,
        tasks: Sequence[str],
        splits: Mapping[str, int],
        *,
        episodes: Count | None = None,
        query: ProperFraction = 0.25,
    ) -> None:
        if len(tasks) < 2:
            raise UsageError(
                "episodes: task-powerset makes episodes of two or more tasks, and the run has one "
                f"({', '.join(tasks)}): give it two or more, or use episodes.name=joint with a "
                "plain optimizer"
            )
        if episodes is not None and episodes < 1:
            raise UsageError(f"episodes.episodes: {episodes} is not a number of subsets")
        if not 0 < query < 1:
            raise UsageError(f"episodes.query: {query} is no part between 0 and 1")
        size = splits.get("train", 0)
        if size < 2:
            raise UsageError(
                f"data: task-powerset shares the split 'train' out to support and query; it holds "
                f"{size} sample(s)"
            )
        self._episodes = episodes
        number = min(size - 1, max(1, round(query * size)))
        kept = {(2 * i + 1) * size // (2 * number) for i in range(number)}
        self._query = tuple(sorted(kept))
        self._support = tuple(i for i in range(size) if i not in kept)

    def steps(self, batch_size: int) -> int:
        return len(batch_bounds(len(self._support), batch_size))

    def epoch(
        self, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> Iterator[StepPlan]:
        support = _batches(self._support, batch_size, generator)
        queries: list[BatchPlan] = []
        for plan in support:
            if not queries:
                queries = _batches(self._query, batch_size, generator)
            subsets = self._subsets(tuple(tasks), generator)
            yield StepPlan(
                (plan, queries.pop()), tuple(Episode(chosen, 0, 1) for chosen in subsets)
            )

    def _subsets(self, tasks: tuple[str, ...], generator: torch.Generator) -> list[tuple[str, ...]]:
        if len(tasks) == 1:
            return [tasks]
        number = 2 ** len(tasks) - len(tasks) - 1
        if self._episodes is None or self._episodes >= number:
            sizes = range(2, len(tasks) + 1)
            return [chosen for size in sizes for chosen in combinations(tasks, size)]
        drawn: dict[int, None] = {}  # a bit per task; in the order in which they were drawn
        while len(drawn) < self._episodes:
            bits = int(torch.randint(2 ** len(tasks), (), generator=generator))
            if bits.bit_count() >= 2:
                drawn[bits] = None
        return [tuple(t for i, t in enumerate(tasks) if bits >> i & 1) for bits in drawn]


def _batches(
    samples: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[BatchPlan]:
    """Return some training samples, each once, in random order."""
    plans = shuffled_batches("train", len(samples), batch_size, generator)
    return [attrs.evolve(p, indices=tuple(samples[i] for i in p.indices)) for p in plans]
