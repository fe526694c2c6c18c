"""The charts of a run: what it learned, and what its balancer and optimizer did."""

from __future__ import annotations

from collections.abc import Mapping

from mtlcore.metrics import is_regional
from mtlcore.report.charts.drawing import Chart
from mtlcore.report.charts.lines import Line
from mtlcore.report.charts.series import Key, Series, families

#: How charts call the splits that a run records.
SPLITS = {"train": "training", "val": "validation"}
_CONSTANTS = {"global": "constant", "pixel": "per pixel"}
_BALANCING = ("weight", "cosine", "degenerate", "estimate_cosine", "gramian_error")
_EXACT = ("learning_rate", "degenerate", "estimate_cosine", "gramian_error")
"""What a running mean would blur."""
_TITLES = {
    "weight": "Weights of the tasks",
    "cosine": "Cosines between the tasks' gradients",
    "degenerate": "Degenerate steps since the last record",
    "estimate_cosine": "Cosine of the update by balancer.depth to the exact one",
    "gramian_error": "Relative error of the Gramian by balancer.depth",
    "early": "Losses of early predictions",
    "term": "Terms beside the tasks' losses",
    "learning_rate": "Learning rate",
}


def learning_charts(
    curves: Series,
    task: str,
    *,
    higher_is_better: Mapping[str, Mapping[str, bool]],
    constants: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[Chart]:
    """Return the charts of a task's losses and of each of its metrics.

    Args:
        curves: The points of all that the run recorded.
        task: Name of the task.
        higher_is_better: Task -> metric -> whether higher is better.
        constants: "global" or "pixel" -> task -> metric -> value of the best constants.
    """
    losses = [
        Line(label=title, look=number, points=curves[split, task, "loss"])
        for number, (split, title) in enumerate(SPLITS.items())
        if (split, task, "loss") in curves
    ]
    charts = []
    if losses:
        charts.append(Chart(title="loss", lines=losses, smooth=True, may_be_logarithmic=True))
    for (split, of, metric), points in curves.items():
        if split == "train" or of != task or metric == "loss" or is_regional(metric):
            continue
        arrow = arrow_of(higher_is_better.get(task, {}).get(metric))
        charts.append(
            Chart(
                title=f"{metric}{arrow}, {SPLITS.get(split, split)}",
                lines=[Line(label="model", look=1, points=points)],
                levels={
                    name: values[task][metric]
                    for extent, name in _CONSTANTS.items()
                    if metric in (values := constants.get(extent, {})).get(task, {})
                },
            )
        )
    return charts


def task_looks(curves: Series) -> dict[Key, Line]:
    """Return a line per key, with the look of its task."""
    tasks = list(dict.fromkeys(task for _, task, _ in curves if task and "|" not in task))
    return {
        key: Line(label=key[2], look=tasks.index(key[1]) if key[1] in tasks else 0, points=points)
        for key, points in curves.items()
    }


def step_charts(lines: Mapping[Key, Line], *, balancing: bool) -> list[Chart]:
    """Return the charts of what was recorded of steps beside losses.

    Args:
        lines: Key -> its curve, with the look of its task.
        balancing: Return those of balancers; otherwise all others.
    """
    charts = []
    for (family, task), members in families(lines).items():
        if (family in _BALANCING) != balancing:
            continue
        of_tasks = family == "weight" and task is None  # a line per task, with the task's look
        charts.append(
            Chart(
                title=_title(family, task),
                lines=[
                    Line(
                        label=label,
                        look=lines[key].look if of_tasks else number,
                        points=lines[key].points,
                        band=lines[key].band,
                    )
                    for number, (label, key) in enumerate(members.items())
                ],
                levels={"": 0.0} if family == "cosine" else {},
                smooth=family not in _EXACT,
                may_be_logarithmic=True,
            )
        )
    return charts


def task_heading(task: str, units: Mapping[str, str]) -> str:
    """Return the heading of a task's charts: its name, and its unit where it has one."""
    unit = units.get(task)
    return f"{task} ({unit})" if unit else task


def arrow_of(higher_is_better: bool | None) -> str:
    """Return the arrow towards better values, with a space before it; empty where unknown."""
    return {True: " ↑", False: " ↓", None: ""}[higher_is_better]


def _title(family: str, task: str | None) -> str:
    title = _TITLES.get(family, family.replace("_", " "))
    if task is None:
        return title
    return f"Weights of {task} by class" if family == "weight" else f"{task}: {title}"
