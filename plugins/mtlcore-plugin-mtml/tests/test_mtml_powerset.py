"""The sampler: which subsets, which samples, and what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mtlcore.episodes import StepPlan
from mtlcore.errors import UsageError
from mtlcore_mtml.powerset import TaskPowerset

TASKS = ("one", "two", "three", "four", "five")


def epoch(
    sampler: TaskPowerset, tasks: Sequence[str], batch_size: int = 4, seed: int = 0
) -> list[StepPlan]:
    return list(sampler.epoch(tasks, batch_size, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_subset_of_two_or_more(count: int) -> None:
    tasks = TASKS[:count]
    for plan in epoch(TaskPowerset(tasks, {"train": 20}), tasks):
        found = [episode.tasks for episode in plan.episodes]
        assert len(found) == 2**count - count - 1
        assert len({frozenset(chosen) for chosen in found}) == len(found)
        assert all(len(chosen) >= 2 for chosen in found)
        assert all(list(chosen) == [t for t in tasks if t in chosen] for chosen in found)
        assert found[-1] == tasks


def test_some_subsets_are_drawn_evenly_for_every_step() -> None:
    tasks, counts = TASKS[:4], Counter[tuple[str, ...]]()
    sampler = TaskPowerset(tasks, {"train": 1200}, episodes=3)
    plans = epoch(sampler, tasks, batch_size=1)
    for plan in plans:
        found = [episode.tasks for episode in plan.episodes]
        assert len(set(found)) == len(found) == 3
        counts.update(found)
    assert len(counts) == 11
    expected = len(plans) * 3 / 11
    assert all(0.7 * expected < number < 1.3 * expected for number in counts.values())


def test_more_subsets_than_there_are_is_all_of_them() -> None:
    tasks = TASKS[:3]
    some, every = (TaskPowerset(tasks, {"train": 20}, episodes=n) for n in (4, None))
    assert epoch(some, tasks) == epoch(every, tasks)


@pytest.mark.parametrize(("size", "query", "kept"), [(20, 0.25, 5), (7, 0.5, 4), (2, 0.9, 1)])
def test_support_and_query_share_nothing_and_stay_as_they_are(
    size: int, query: float, kept: int
) -> None:
    support, queries = set[int](), set[int]()
    for seed in range(6):
        sampler = TaskPowerset(TASKS, {"train": size}, query=query)
        plans = epoch(sampler, TASKS, seed=seed)
        assert len(plans) == sampler.steps(4)
        seen = [i for plan in plans for i in plan.batches[0].indices]
        assert sorted(seen) == sorted(set(seen)), "a support sample twice in an epoch"
        support.update(seen)
        queries.update(i for plan in plans for i in plan.batches[1].indices)
        assert {b.split for plan in plans for b in plan.batches} == {"train"}
    assert len(queries) == kept
    assert support | queries == set(range(size))
    assert not support & queries


def test_the_query_part_is_spread_over_the_split() -> None:
    """Whatever the order of samples says, such as buildings, is in both parts."""
    sampler = TaskPowerset(TASKS, {"train": 1000}, query=0.2)
    gaps = [b - a for a, b in zip(sampler._query, sampler._query[1:], strict=False)]
    assert set(gaps) == {5}


def test_query_samples_come_equally_often() -> None:
    sampler = TaskPowerset(TASKS, {"train": 96}, query=0.25)
    counts = Counter(i for plan in epoch(sampler, TASKS) for i in plan.batches[1].indices)
    assert set(counts.values()) == {3}


def test_tasks_leave() -> None:
    sampler = TaskPowerset(TASKS[:4], {"train": 20}, episodes=3)
    for left, number in ((3, 3), (2, 1), (1, 1)):
        for plan in epoch(sampler, TASKS[:left]):
            assert len(plan.episodes) == number
            assert all(set(e.tasks) <= set(TASKS[:left]) for e in plan.episodes)


@pytest.mark.parametrize(
    ("tasks", "train", "settings", "message"),
    [
        (TASKS[:1], 20, {}, r"the run has one \(one\): give it two or more"),
        (TASKS, 1, {}, "it holds 1 sample"),
        (TASKS, 20, {"episodes": 0}, r"episodes\.episodes: 0"),
        (TASKS, 20, {"query": 0.0}, r"episodes\.query: 0\.0"),
        (TASKS, 20, {"query": 1.0}, r"episodes\.query: 1\.0"),
        (TASKS, 20, {"query": float("nan")}, r"episodes\.query: nan"),
    ],
)
def test_what_is_refused(
    tasks: Sequence[str], train: int, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TaskPowerset(tasks, {"train": train}, **settings)
