"""From the records of a run to points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from mtlcore.report.charts.lines import Point
from mtlcore.storage import Record

Key = tuple[str, str | None, str]  # split, task and metric
Along = Literal["step", "epoch"]
Series = Mapping[Key, tuple[Point, ...]]


def series(records: Iterable[Record], along: Along = "step") -> Series:
    """Return the points of each (split, task, metric) along steps or epochs."""
    points: dict[Key, list[Point]] = {}
    for record in records:
        key = (record["split"], record["task"], record["metric"])
        points.setdefault(key, []).append((float(record[along]), float(record["value"])))
    return {key: tuple(values) for key, values in points.items()}


def families(keys: Iterable[Key]) -> dict[tuple[str, str | None], dict[str, Key]]:
    """Group what a run recorded of its steps, without losses, by the charts that show it.

    The family of a metric such as "weight/chair" is "weight", and each of its tasks has a chart of
    its own. Tasks share the chart of a metric without a slash.

    Returns:
        (family, task or None) -> label of a line -> its key.
    """
    groups: dict[tuple[str, str | None], dict[str, Key]] = {}
    for key in keys:
        split, task, metric = key
        if split != "train" or metric == "loss":
            continue
        family, _, member = metric.partition("/")
        if member:
            groups.setdefault((family, task), {})[member] = key
        else:
            label = (task or metric.replace("_", " ")).replace("|", " and ")
            groups.setdefault((family, None), {})[label] = key
    return groups
