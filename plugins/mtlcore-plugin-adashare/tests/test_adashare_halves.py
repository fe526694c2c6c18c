"""The sampler of two halves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from mtlcore.episodes import EpisodeSampler
from mtlcore.errors import UsageError
from mtlcore.testing import EpisodeSamplerContract
from mtlcore_adashare.halves import Halves


class TestHalves(EpisodeSamplerContract):
    def make(self, tasks: Sequence[str], splits: dict[str, int]) -> EpisodeSampler:
        return Halves(tasks, splits)


@pytest.mark.parametrize("size", [10, 11])
def test_batches_are_of_the_halves_in_turn(size: int) -> None:
    sampler = Halves(["depth"], {"train": size})
    generator = torch.Generator().manual_seed(0)
    seen: list[set[int]] = []
    for _ in range(12):
        plans = list(sampler.epoch(["depth"], 2, generator))
        assert len(plans) == sampler.steps(2) == 4
        samples = [index for plan in plans for index in plan.batches[0].indices]
        for number, plan in enumerate(plans):
            assert {index % 2 for index in plan.batches[0].indices} == {number % 2}
        assert len(samples) == len(set(samples)) == 10
        seen.append(set(samples))
    assert set.union(*seen) == set(range(size))  # none is left out for ever


def test_one_sample_has_no_halves() -> None:
    with pytest.raises(UsageError, match=r"raise data\.train"):
        Halves(["depth"], {"train": 1})
