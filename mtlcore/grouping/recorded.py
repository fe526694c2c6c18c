"""What runs recorded of pairs of tasks while they trained."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from mtlcore.errors import UsageError
from mtlcore.grouping.relations import Pair, Relations, over_runs
from mtlcore.results import RunResult


def recorded_relations(runs: Sequence[RunResult], metric: str) -> Relations:
    """Return the means over training of what runs of the same tasks recorded of pairs.

    Args:
        runs: Finished runs.
        metric: Name of what was recorded: as "METRIC/b" of task a, what a does to b; or as METRIC
            of "a|b", such as a cosine, the same in both directions.

    Raises:
        UsageError: The runs have other tasks than one another, or did not record it.
    """
    tasks = runs[0].tasks
    measured: list[tuple[Pair, int, float]] = []
    directed = False
    for number, run in enumerate(runs):
        if set(run.tasks) != set(tasks):
            raise UsageError(
                f"{run.location}: learnt {', '.join(run.tasks)}, and {runs[0].location} "
                f"{', '.join(tasks)}; name runs of the same tasks"
            )
        found = dict(_means(run, metric))
        if not found:
            raise UsageError(
                f"{run.location}: recorded no {metric!r} of pairs of tasks; optimizers and "
                "balancers do that (docs/how-to/task-groups.md says which)"
            )
        directed = directed or any(r["metric"].startswith(f"{metric}/") for r in run.records)
        measured += [(pair, number, value) for pair, value in found.items()]
    measure = f"{metric}: what runs recorded, in the mean over training"
    return over_runs(measure, tasks, measured, directed=directed)


def _means(run: RunResult, metric: str) -> Iterator[tuple[Pair, float]]:
    """Yield each pair of tasks with the mean of its records that are finite."""
    values: dict[Pair, list[float]] = {}
    for record in run.records:
        pair = _pair(record["metric"], record["task"], metric)
        if record["split"] == "train" and pair is not None and math.isfinite(record["value"]):
            values.setdefault(pair, []).append(record["value"])
    for pair, of_pair in values.items():
        if {*pair} <= {*run.tasks}:
            yield pair, statistics.fmean(of_pair)


def _pair(metric: str, task: str | None, wanted: str) -> Pair | None:
    """Return the tasks of a record: "wanted/b" of a, or "wanted" of "a|b"."""
    if task is None:
        return None
    if metric == wanted:
        first, separator, second = task.partition("|")
        return (first, second) if separator else None
    family, separator, target = metric.partition("/")
    return (task, target) if family == wanted and separator else None
