"""The best groups of tasks for a number of networks: an exact search."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
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
    total = sum(_received(relations, group) for group in groups)
    return total / sum(map(len, groups))


def best_grouping(relations: Relations, budget: int) -> Grouping:
    """Return the groups with the highest score of all ways to make at most `budget` of them.

    Of equally good ones, that with the fewest groups.

    Raises:
        UsageError: The budget is no number of networks, or there are more tasks than
            `MOST_TASKS`.
    """
    tasks = relations.tasks
    if budget < 1:
        raise UsageError(f"--budget: {budget} is not a number of networks")
    if len(tasks) > MOST_TASKS:
        raise UsageError(
            f"there are {len(tasks)} tasks, and of more than {MOST_TASKS} there are too many ways "
            "to make groups to look at each"
        )
    every = (1 << len(tasks)) - 1
    worth = [_received(relations, _members(tasks, mask)) for mask in range(every + 1)]
    # Set of tasks -> the most that they get in so many groups, and the first of these.
    best: dict[int, tuple[float, int]] = {mask: (worth[mask], mask) for mask in range(1, every + 1)}
    levels = [best]
    for _ in range(1, min(budget, len(tasks))):
        before, best = levels[-1], dict(levels[-1])
        for mask in before:
            for group in _parts(mask):
                rest = mask ^ group
                if rest and worth[group] + before[rest][0] > best[mask][0] + 1e-12:
                    best[mask] = worth[group] + before[rest][0], group
        levels.append(best)
    groups, left = [], every
    for level in reversed(levels):
        group = level[left][1]
        groups.append(_members(tasks, group))
        left ^= group
        if not left:
            break
    groups.sort(key=lambda group: tasks.index(group[0]))
    return Grouping(groups=tuple(groups), score=score_of(relations, groups))


def _received(relations: Relations, group: Sequence[str]) -> float:
    """Return the sum over a group's tasks of the mean that each gets from the others."""
    if len(group) < 2:
        return 0.0
    return sum(
        statistics.fmean(relations.mean(source, target) for source in group if source != target)
        for target in group
    )


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
