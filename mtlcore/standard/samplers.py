"""The episode sampler of plain training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from mtlcore.episodes import Episode, EpisodeSampler, StepPlan, batch_bounds, shuffled_batches
from mtlcore.errors import UsageError


class Joint(EpisodeSampler):
    """All tasks from one batch per step; an epoch shows every training sample once."""

    def __init__(self, tasks: Sequence[str], splits: Mapping[str, int]) -> None:
        if splits.get("train", 0) == 0:
            raise UsageError("data: the split 'train' holds no sample")
        self._size = splits["train"]

    def steps(self, batch_size: int) -> int:
        return len(batch_bounds(self._size, batch_size))

    def epoch(
        self, tasks: Sequence[str], batch_size: int, generator: torch.Generator
    ) -> Iterator[StepPlan]:
        for plan in shuffled_batches("train", self._size, batch_size, generator):
            yield StepPlan((plan,), (Episode(tuple(tasks), support=0),))
