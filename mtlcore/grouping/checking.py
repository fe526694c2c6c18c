"""A table of relations against what runs of groups measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import final

import attrs
import numpy as np

from mtlcore.errors import UsageError
from mtlcore.grouping.likeness import spearman
from mtlcore.grouping.relations import Relations
from mtlcore.grouping.search import Grouping, best_of, received_by
from mtlcore.grouping.transfer import gain
from mtlcore.results import Epoch, RunResult

_FEWEST = 4  # (task, group) of which a rank correlation says something


@final
@attrs.frozen(kw_only=True)
class Check:
    """How far a table predicts what tasks gain in groups.

    Args:
        correlation: Spearman's rank correlation between what the table says that a task gets from
            a group and by how many percent it was better there than alone, over all measured
            groups of two and more and their tasks.
        compared: The number of (task, group) that it is over.
        chosen: By how many percent tasks were better in the chosen groups than alone, in the
            mean; NaN where not all of them were trained.
        best: The measured groups that were best of all for the budget; its score is in the
            same unit. None: those that were trained do not make up all tasks.
    """

    correlation: float
    compared: int
    chosen: float
    best: Grouping | None


def check_relations(
    relations: Relations,
    chosen: Grouping,
    budget: int,
    runs: Sequence[RunResult],
    epoch: Epoch = "last",
) -> Check:
    """Compare a table, and the groups chosen by it, with runs of groups.

    Args:
        relations: The table.
        chosen: The groups.
        budget: The largest number of groups.
        runs: Finished runs of every task alone and of groups of these tasks; each is compared
            with runs alone of its seed.
        epoch: Whose metrics are compared.

    Raises:
        UsageError: There are fewer than four (task, group) to compare.
    """
    gains = _gains(relations.tasks, runs, epoch)
    measured = {
        (task, group): value
        for group, of_tasks in gains.items()
        if len(group) > 1
        for task, value in of_tasks.items()
    }
    if len(measured) < _FEWEST:
        raise UsageError(
            f"--check: {len(measured)} task(s) in groups have runs of the group and of the task "
            f"alone with the same seed, and at least {_FEWEST} are compared"
        )
    predicted = [received_by(relations, task, sorted(group)) for task, group in measured]

    def worth(group: Sequence[str]) -> float:
        if len(group) == 1:
            return 0.0
        of_tasks = gains.get(frozenset(group))
        return -math.inf if of_tasks is None else sum(of_tasks.values())

    best = best_of(relations.tasks, worth, budget)
    return Check(
        correlation=spearman(np.array(predicted), np.array(list(measured.values()))),
        compared=len(measured),
        chosen=_or_nan(sum(map(worth, chosen.groups)) / len(relations.tasks)),
        best=best if math.isfinite(best.score) else None,
    )


def _gains(
    tasks: Sequence[str], runs: Sequence[RunResult], epoch: Epoch
) -> Mapping[frozenset[str], Mapping[str, float]]:
    """Return for every group its tasks' mean gains over the seeds."""
    alone = {(run.tasks[0], run.seed): run for run in runs if len(run.tasks) == 1}
    values: dict[frozenset[str], dict[str, list[float]]] = {}
    for run in runs:
        if len(run.tasks) == 1 or not {*run.tasks} <= {*tasks}:
            continue
        if all((task, run.seed) in alone for task in run.tasks):
            of_group = values.setdefault(frozenset(run.tasks), {})
            for task in run.tasks:
                value = gain(run, alone[task, run.seed], task, epoch)
                of_group.setdefault(task, []).append(value)
    return {
        group: {task: statistics.fmean(seeds) for task, seeds in of_tasks.items()}
        for group, of_tasks in values.items()
    }


def _or_nan(value: float) -> float:
    return value if math.isfinite(value) else math.nan
