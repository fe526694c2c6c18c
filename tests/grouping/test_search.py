"""The best groups, against every way there is to make groups."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import pytest

from mtlcore.errors import UsageError
from mtlcore.grouping import Relations, best_grouping, score_of
from mtlcore.results import Difference


def _relations(tasks: Sequence[str], seed: int = 0, **known: float) -> Relations:
    """Random relations, but for those that are known as `a_b`."""
    draw = random.Random(seed)
    values = {
        (a, b): Difference({0: known.get(f"{a}_{b}", draw.uniform(-1, 1))})
        for a in tasks
        for b in tasks
        if a != b
    }
    return Relations(measure="random", tasks=tuple(tasks), values=values, directed=True)


def _partitions(tasks: Sequence[str]) -> Iterator[list[list[str]]]:
    if not tasks:
        yield []
        return
    first, *others = tasks
    for partition in _partitions(others):
        yield [[first], *partition]
        for number, group in enumerate(partition):
            yield [*partition[:number], [first, *group], *partition[number + 1 :]]


@pytest.mark.parametrize("count", [2, 3, 5, 6])
@pytest.mark.parametrize("budget", [1, 2, 3, 9])
def test_is_the_best_of_all(count: int, budget: int) -> None:
    tasks = "abcdef"[:count]
    for seed in range(5):
        relations = _relations(tasks, seed)
        found = best_grouping(relations, budget)
        best = max(
            score_of(relations, groups)
            for groups in _partitions(list(tasks))
            if len(groups) <= budget
        )
        assert found.score == pytest.approx(best, abs=1e-9)
        assert score_of(relations, found.groups) == pytest.approx(best, abs=1e-9)
        assert len(found.groups) <= budget
        assert sorted(task for group in found.groups for task in group) == list(tasks)


def test_order_and_scale_of_the_table_change_nothing() -> None:
    relations = _relations("abcde")
    turned = Relations(
        measure="turned",
        tasks=tuple(reversed(relations.tasks)),
        values={pair: Difference({0: 100 * v.mean}) for pair, v in relations.values.items()},
        directed=True,
    )
    groups = {frozenset(group) for group in best_grouping(relations, 3).groups}
    assert groups == {frozenset(group) for group in best_grouping(turned, 3).groups}


def test_tasks_that_harm_one_another_stay_alone() -> None:
    relations = _relations("abc", a_b=-1, b_a=-1, a_c=-1, c_a=-1, b_c=0.5, c_b=0.5)
    assert best_grouping(relations, 3).groups == (("a",), ("b", "c"))
    # One network must serve all, whatever it does to them.
    assert best_grouping(relations, 1).groups == (("a", "b", "c"),)


def test_no_more_networks_than_are_worth_it() -> None:
    helpful = _relations("abc", **{f"{a}_{b}": 1.0 for a in "abc" for b in "abc" if a != b})
    assert best_grouping(helpful, 3).groups == (("a", "b", "c"),)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(UsageError, match="--budget: 0"):
        best_grouping(_relations("ab"), 0)
    with pytest.raises(UsageError, match="15 tasks"):
        best_grouping(_relations("abcdefghijklmno"), 2)


def test_a_pair_that_nothing_is_known_of_is_named() -> None:
    with pytest.raises(UsageError, match="nothing was measured of b -> a"):
        Relations(measure="x", tasks=("a", "b"), values={("a", "b"): Difference({0: 1.0})},
                  directed=True)  # fmt: skip
    with pytest.raises(UsageError, match="nothing was measured of a and b"):
        Relations(measure="x", tasks=("a", "b"), values={("a", "b"): Difference({0: math.nan})},
                  directed=False)  # fmt: skip
