"""What runs recorded of pairs of tasks while they trained."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Literal

from mtlcore.errors import UsageError
from mtlcore.grouping.relations import Pair, Relations, over_runs
from mtlcore.results import RunResult

#: The metrics that runs record of pairs of tasks.
Recorded = Literal["affinity", "cosine"]

_HOW = {
    "affinity": "train with --plugin tag",
    "cosine": "train with a balancer of gradients, such as balancer.name=unit-norm",
}
_MEASURES = {
    "affinity": "Affinity: the part of a task's loss that a step for another task removes",
    "cosine": "Cosine between the tasks' gradients",
}


def recorded_relations(runs: Sequence[RunResult], metric: Recorded) -> Relations:
    """Return the means over training of what runs of the same tasks recorded.

    Args:
        runs: Finished runs.
        metric: "affinity", of which there are two per pair, or "cosine".

    Raises:
        UsageError: The runs have other tasks than one another, or did not record it.
    """
    tasks = runs[0].tasks
    measured = []
    for number, run in enumerate(runs):
        if set(run.tasks) != set(tasks):
            raise UsageError(
                f"{run.location}: learnt {', '.join(run.tasks)}, and {runs[0].location} "
                f"{', '.join(tasks)}; name runs of the same tasks"
            )
        found = dict(_means(run, metric))
        if not found:
            raise UsageError(f"{run.location}: recorded no {metric}; {_HOW[metric]}")
        measured += [(pair, number, value) for pair, value in found.items()]
    return over_runs(_MEASURES[metric], tasks, measured, directed=metric == "affinity")


def _means(run: RunResult, metric: Recorded) -> Iterator[tuple[Pair, float]]:
    """Yield each pair of tasks with the mean of its records that are finite."""
    values: dict[Pair, list[float]] = {}
    for record in run.records:
        pair = _pair(record["metric"], record["task"], metric)
        if record["split"] == "train" and pair is not None and math.isfinite(record["value"]):
            values.setdefault(pair, []).append(record["value"])
    for pair, of_pair in values.items():
        if {*pair} <= {*run.tasks}:
            yield pair, statistics.fmean(of_pair)


def _pair(metric: str, task: str | None, wanted: Recorded) -> Pair | None:
    """Return the tasks of a record: "affinity/b" of a, or "cosine" of "a|b"."""
    if task is None:
        return None
    if wanted == "cosine":
        first, separator, second = task.partition("|")
        return (first, second) if metric == wanted and separator else None
    family, separator, target = metric.partition("/")
    return (task, target) if family == wanted and separator else None
