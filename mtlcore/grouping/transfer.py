"""What a task gains from another one that is learnt with it: runs of pairs against runs alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import final

from mtlcore.errors import UsageError
from mtlcore.grouping.relations import Relations, over_runs
from mtlcore.results import Epoch, RunResult

_Runs = dict[tuple[frozenset[str], int], RunResult]


@final
class Missing(Exception):
    """Runs that a table of transfer gains needs are not there.

    Args:
        groups: The tasks of each.
    """

    def __init__(self, groups: tuple[tuple[str, ...], ...]) -> None:
        super().__init__(groups)
        self.groups = groups


def transfer_gains(runs: Sequence[RunResult], epoch: Epoch = "last") -> Relations:
    """Return by how many percent each task is better with each other one than alone.

    The gain of a seed is the difference of the task's first metric, in the direction that is
    better, between its runs of the pair and of the task alone, relative to the latter.

    Args:
        runs: Finished runs of every task alone and of every pair, those of more tasks are left out.
        epoch: Whose metrics are compared.

    Raises:
        Missing: There is no seed of some pair with both tasks alone.
        UsageError: Two runs have the same tasks and the same seed.
    """
    tasks = tuple(dict.fromkeys(task for run in _largest_first(runs) for task in run.tasks))
    by_tasks = _by_tasks(runs)
    seeds = sorted({seed for _, seed in by_tasks})
    measured, absent = [], []
    for pair in combinations(tasks, 2):
        groups = [frozenset(pair), frozenset(pair[:1]), frozenset(pair[1:])]
        common = [seed for seed in seeds if all((group, seed) in by_tasks for group in groups)]
        if not common:
            absent += [g for g in groups if not any((g, seed) in by_tasks for seed in seeds)]
            absent += [] if absent else groups
        for seed in common:
            together = by_tasks[groups[0], seed]
            for source, target in (pair, pair[::-1]):
                alone = by_tasks[frozenset([target]), seed]
                measured.append(((source, target), seed, gain(together, alone, target, epoch)))
    if absent:
        ordered = [tuple(t for t in tasks if t in group) for group in dict.fromkeys(absent)]
        raise Missing(tuple(sorted(ordered, key=len)))
    return over_runs(
        "Transfer gain: by how many percent a task is better with another one than alone",
        tasks,
        measured,
        directed=True,
    )


def gain(run: RunResult, alone: RunResult, task: str, epoch: Epoch) -> float:
    """Return by how many percent a run's task is better than in a run of it alone."""
    metric, higher = next(
        (name, better) for name, better in run.higher_is_better[task].items() if name != "loss"
    )
    before, after = (of.metrics(epoch)[task][metric] for of in (alone, run))
    change = (after - before) / abs(before) if before else math.nan
    return 100 * (change if higher else -change)


def _by_tasks(runs: Iterable[RunResult]) -> _Runs:
    by_tasks: _Runs = {}
    for run in runs:
        key = frozenset(run.tasks), run.seed
        if len(run.tasks) > 2:
            continue
        if key in by_tasks:
            if by_tasks[key].config == run.config:  # of a task that had no partner in its round
                continue
            raise UsageError(
                f"{run.location}: learnt {', '.join(run.tasks)} with seed {run.seed}, as "
                f"{by_tasks[key].location} did; name one of the two"
            )
        by_tasks[key] = run
    return by_tasks


def _largest_first(runs: Iterable[RunResult]) -> list[RunResult]:
    return sorted(runs, key=lambda run: -len(run.tasks))
