"""Batches of two halves of the training samples, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import attrs
import torch

from mtlcore.episodes import Episode, EpisodeSampler, StepPlan, batch_bounds, shuffled_batches
from mtlcore.errors import UsageError


@final
class Halves(EpisodeSampler):
    """All tasks from one batch per step: of one half of the samples, of the other, and so on.

    What learns two things in turn, such as weights and policies, learns each from samples of its
    own. Samples with even numbers are one half, those with odd numbers the other. An epoch shows
    each half once, in as many batches as the other, so that its number of steps is even; of an odd
    number of samples, the first half leaves one out, another one in each epoch.

    Args:
        tasks: names of the run's tasks.
        splits: number of samples per split.

    Raises:
        UsageError: there are fewer than two training samples.
    """

    def __init__(self, tasks: Sequence[str], splits: Mapping[str, int]) -> None:
        self._size = splits.get("train", 0)
        if self._size < 2:
            raise UsageError(
                f"episodes.name: halves needs two training samples, and there are {self._size}; "
                "raise data.train"
            )

    def steps(self, batch_size: int) -> int:
        """Return the number of batches of both halves."""
        return 2 * len(batch_bounds(self._size // 2, batch_size))

    def epoch(
        self, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> Iterator[StepPlan]:
        """Yield batches of the halves in turn."""
        count = self._size // 2
        shift = int(torch.randint(self._size, (), generator=generator))
        halves = []
        for first in (0, 1):
            samples = list(range(first, self._size, 2))
            # Turned round by a random number, so that what is cut off is another one each time.
            turned = [samples[(shift + place) % len(samples)] for place in range(count)]
            plans = shuffled_batches("train", count, batch_size, generator)
            halves.append(
                [
                    attrs.evolve(plan, indices=tuple(turned[place] for place in plan.indices))
                    for plan in plans
                ]
            )
        for pair in zip(*halves, strict=True):
            for batch in pair:
                yield StepPlan((batch,), (Episode(tuple(tasks), support=0),))
