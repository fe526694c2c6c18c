"""The best groups of tasks for a number of networks: an exact search."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import final

import attrs

from mtlcore.errors import UsageError
from mtlcore.grouping.relations import Relations

#: The search looks at 3**K pairs of groups for K tasks.
MOST_TASKS = 14


@final
@attrs.frozen(kw_only=True)
class Grouping:
    """Tasks in groups, each learnt by a network of its own.

    Args:
        groups: Each task is in one of them.
        score: The mean over the tasks of what each gets from its group.
    """

    groups: tuple[tuple[str, ...], ...]
    score: float


def score_of(relations: Relations, groups: Sequence[Sequence[str]]) -> float:
    """Return the mean over all tasks of what each gets from the others of its group.

    That is the mean over the others; a task alone gets 0: nobody helps it, and nobody harms it.
    """
    total = sum(received(relations, group) for group in groups)
    return total / sum(map(len, groups))


def best_grouping(relations: Relations, budget: int) -> Grouping:
    """Return the groups with the highest score of all ways to make at most `budget` of them.

    Of equally good ones, that with the fewest groups.

    Raises:
        UsageError: The budget is no number of networks, or there are more tasks than
            `MOST_TASKS`.
    """
    return best_of(relations.tasks, lambda group: received(relations, group), budget)


def best_of(
    tasks: Sequence[str], worth: Callable[[tuple[str, ...]], float], budget: int
) -> Grouping:
    """Return the best groups by what a group is worth; its score is the sum over tasks, divided.

    Args:
        tasks: All tasks.
        worth: Of a group in the order of `tasks`: the sum of what its tasks get; minus infinity
            for one that may not be.
        budget: The largest number of groups.

    Raises:
        UsageError: As `best_grouping` does.
    """
    if budget < 1:
        raise UsageError(f"--budget: {budget} is not a number of networks")
    if len(tasks) > MOST_TASKS:
        raise UsageError(
            f"there are {len(tasks)} tasks, and of more than {MOST_TASKS} there are too many ways "
            "to make groups to look at each"
        )
    every = (1 << len(tasks)) - 1
    worths = [0.0, *(worth(_members(tasks, mask)) for mask in range(1, every + 1))]
    # Set of tasks -> the most that they get in so many groups, and the first of these.
    best = {mask: (worths[mask], mask) for mask in range(1, every + 1)}
    levels = [best]
    for _ in range(1, min(budget, len(tasks))):
        before, best = levels[-1], dict(levels[-1])
        for mask in before:
            for group in _parts(mask):
                rest = mask ^ group
                if rest and worths[group] + before[rest][0] > best[mask][0] + 1e-12:
                    best[mask] = worths[group] + before[rest][0], group
        levels.append(best)
    groups, left = [], every
    for level in reversed(levels):
        group = level[left][1]
        groups.append(_members(tasks, group))
        left ^= group
        if not left:
            break
    groups.sort(key=lambda group: tasks.index(group[0]))
    return Grouping(groups=tuple(groups), score=levels[-1][every][0] / len(tasks))


def received(relations: Relations, group: Sequence[str]) -> float:
    """Return the sum over a group's tasks of what each gets from the others."""
    return sum(received_by(relations, task, group) for task in group)


def received_by(relations: Relations, task: str, group: Sequence[str]) -> float:
    """Return the mean of what the others of a group do to a task; 0 if there is none."""
    others = [relations.mean(source, task) for source in group if source != task]
    return statistics.fmean(others) if others else 0.0


def _members(tasks: Sequence[str], mask: int) -> tuple[str, ...]:
    return tuple(task for number, task in enumerate(tasks) if mask >> number & 1)


def _parts(mask: int) -> Iterator[int]:
    """Yield the subsets that have the lowest task of a set, so that no division comes twice."""
    lowest = mask & -mask
    others = mask ^ lowest
    part = others
    while True:
        yield part | lowest
        if not part:
            return
        part = (part - 1) & others
