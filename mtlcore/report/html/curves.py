"""From the lines of metrics.jsonl to the curves of charts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from mtlcore.report.html.charts import Line, Point
from mtlcore.storage import Row, or_nan

Key = tuple[str, str | None, str]  # split, task and metric
Along = Literal["step", "epoch"]


def series(rows: Iterable[Row], along: Along = "step") -> dict[Key, tuple[Point, ...]]:
    """(split, task, metric) -> points along steps or epochs; null has become NaN."""
    found: dict[Key, list[Point]] = {}
    for row in rows:
        key = (row["split"], row["task"], row["metric"])
        found.setdefault(key, []).append((float(row[along]), or_nan(row["value"])))
    return {key: tuple(points) for key, points in found.items()}


def over_seeds(label: str, look: int, seeds: Sequence[Sequence[Point]]) -> Line:
    """The mean of several runs' curves, with a band of one standard deviation (n - 1).

    Only points that every run has count; where one of them is NaN there is a gap. A run alone has
    no band.
    """
    tables = [dict(points) for points in seeds]
    common = [x for x in tables[0] if all(x in table for table in tables)]
    values = {x: [table[x] for table in tables] for x in sorted(common)}
    return Line(
        label=label,
        look=look,
        points=tuple((x, statistics.fmean(ys)) for x, ys in values.items()),
        band=tuple(map(_around, values.values())) if len(tables) > 1 else (),
    )


def _around(values: Sequence[float]) -> Point:
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return mean - deviation, mean + deviation


#: What the core records of a step beside losses, with the titles of their charts.
TITLES: Mapping[str, str] = {
    "weight": "Weights of the tasks",
    "cosine": "Cosines between the tasks' gradients",
    "degenerate": "Degenerate steps since the last record",
    "term": "Terms between tasks",
    "learning_rate": "Learning rate",
}


def families(keys: Iterable[Key]) -> dict[tuple[str, str | None], dict[str, Key]]:
    """What a run recorded of its steps, losses apart: (family, task) -> label -> key.

    Of a metric named "weight/chair" the family is "weight", and each of its tasks has lines of its
    own; tasks share the chart of a plain one.
    """
    found: dict[tuple[str, str | None], dict[str, Key]] = {}
    for key in keys:
        split, task, metric = key
        if split != "train" or metric == "loss":
            continue
        family, _, member = metric.partition("/")
        if member:
            found.setdefault((family, task), {})[member] = key
        else:
            label = (task or metric.replace("_", " ")).replace("|", " and ")
            found.setdefault((family, None), {})[label] = key
    return found


def title_of(family: str, task: str | None) -> str:
    """The title of a family's chart."""
    title = TITLES.get(family, family.replace("_", " "))
    if task is None:
        return title
    return f"Weights of {task} by class" if family == "weight" else f"{task}: {title}"
