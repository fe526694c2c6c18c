"""Tasks drawn by the weights of dynamic task prioritization."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
import torch

from mtlcore.episodes import EpisodeSampler
from mtlcore.errors import MtlError, UsageError
from mtlcore.testing import EpisodeSamplerContract
from mtlcore_dtp.sampler import PrioritySampler

TASKS = ("digit", "depth")


class TestContract(EpisodeSamplerContract):
    def make(self, tasks: Sequence[str], splits: Mapping[str, int]) -> EpisodeSampler:
        return PrioritySampler(tasks, splits, kpis=dict.fromkeys(tasks, "share"))

    def metrics(self, number: int) -> dict[str, dict[str, float]]:
        return {
            task: {"loss": 1.0, "share": 0.9 ** (number + place)}
            for place, task in enumerate(self.tasks)
        }


def _counts(sampler: PrioritySampler) -> Counter[str]:
    plans = sampler.epoch(TASKS, 2, torch.Generator().manual_seed(0))
    return Counter(plan.episodes[0].tasks[0] for plan in plans)


def test_steps_are_in_proportion_to_the_weights() -> None:
    sampler = PrioritySampler(TASKS, {"train": 8000})
    assert abs(_counts(sampler)["digit"] - 2000) < 4 * math.sqrt(1000)
    sampler.after_evaluation({"digit": {"accuracy": 0.5}, "depth": {"delta1": 0.8, "loss": 3.0}})
    weights = [0.5 * -math.log(0.5), 0.2 * -math.log(0.8)]
    chance = weights[0] / sum(weights)
    spread = math.sqrt(4000 * chance * (1 - chance))
    assert abs(_counts(sampler)["digit"] - 4000 * chance) < 4 * spread


def test_perfect_tasks_are_drawn_alike() -> None:
    sampler = PrioritySampler(TASKS, {"train": 8000})
    sampler.after_evaluation({task: {"accuracy": 1.0} for task in TASKS})
    assert abs(_counts(sampler)["digit"] - 2000) < 4 * math.sqrt(1000)


def test_indicators_that_are_none_are_told() -> None:
    sampler = PrioritySampler(TASKS, {"train": 8})
    with pytest.raises(UsageError, match=r"episodes\.kpis.*'digit'.*loss"):
        sampler.after_evaluation({"digit": {"loss": 1.0}})
    with pytest.raises(UsageError, match=r"episodes\.kpis.*no metric 'miou'"):
        PrioritySampler(TASKS, {"train": 8}, kpis={"digit": "miou"}).after_evaluation(
            {"digit": {"loss": 1.0}}
        )
    with pytest.raises(MtlError, match="episodes dtp: the metric abs_error"):
        PrioritySampler(TASKS, {"train": 8}, kpis={"depth": "abs_error"}).after_evaluation(
            {"depth": {"abs_error": 2.0}}
        )
    with pytest.raises(UsageError, match=r"episodes\.kpis.*'dept'.*depth"):
        PrioritySampler(TASKS, {"train": 8}, kpis={"dept": "delta1"})
