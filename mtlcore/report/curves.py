"""Curves of a run: what it learned, and what its balancer did."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore.storage import or_nan, written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Curve = tuple[list[float], list[float]]  # steps and values

_NO_PLOTS = "pip install mtlcore[plots] draws learning curves"
_SPLITS = {"train": "training", "val": "validation"}
_FEW_POINTS = 30  # so many are shown as dots, of which one alone can be seen


def save_curves(path: Path, records: Iterable[Record]) -> str | None:
    """Write the learning curves of a run as a PNG: per task its losses and its first figure.

    Args:
        path: not written where there is nothing to draw.
        records: the lines of metrics.jsonl; a value that is null or NaN leaves a gap.

    Returns:
        What to install where matplotlib is missing, else None.

    Raises:
        OSError: the file cannot be written; the one that was there before is left as it was.
    """
    curves = _curves(records)
    losses = {key: curve for key, curve in curves.items() if key[2] == "loss"}
    figures: dict[str, tuple[str, str, str]] = {}
    for split, task, metric in curves:
        if split != "train" and metric != "loss":
            figures.setdefault(task, (split, task, metric))
    tasks = list(dict.fromkeys([*(task for _, task, _ in losses), *figures]))

    def draw(figure: Figure) -> None:
        figure.set_size_inches(11, 0.6 + 2.6 * len(tasks))
        for axes, task in zip(figure.subplots(len(tasks), 2, squeeze=False), tasks, strict=True):
            mine = {split: curve for (split, of, _), curve in losses.items() if of == task}
            _plot(axes[0], f"{task}: loss", {_SPLITS.get(s, s): c for s, c in mine.items()})
            if task in figures:
                split, _, metric = figures[task]
                title = f"{task}: {metric} ({_SPLITS.get(split, split)})"
                _plot(axes[1], title, {metric: curves[figures[task]]})
            else:
                axes[1].set_axis_off()

    return _save_figure(path, draw) if tasks else None


def save_weights(path: Path, records: Iterable[Record]) -> str | None:
    """Write the balancer's weights, and the cosines between tasks' gradients, as a PNG.

    Args:
        path: not written where there is neither.
        records: as for `save_curves`; the metrics "weight", "weight/<name>" (one of several of a
            task) and "cosine" (of a task "a|b") count.

    Returns:
        What to install where matplotlib is missing, else None.

    Raises:
        OSError: the file cannot be written; the one that was there before is left as it was.
    """
    curves = _curves(records)
    titles = {"weight": "weights of the tasks", "cosine": "cosines between gradients of tasks"}
    panels: dict[str, dict[str, Curve]] = {}
    for metric in titles:
        mine = {task: curve for (_, task, of), curve in curves.items() if of == metric}
        if mine:
            panels[titles[metric]] = {task.replace("|", " and "): c for task, c in mine.items()}
    for (_, task, of), curve in curves.items():
        if of.startswith("weight/"):
            panels.setdefault(f"weights within {task}", {})[of.removeprefix("weight/")] = curve

    def draw(figure: Figure) -> None:
        figure.set_size_inches(11, 0.6 + 3.4 * len(panels))
        rows = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, (title, lines) in zip(rows, panels.items(), strict=True):
            _plot(axes, title, lines)
            if title == titles["cosine"]:
                axes.axhline(0, color="0.4", linewidth=0.8)
                axes.set_ylim(-1.05, 1.05)

    return _save_figure(path, draw) if panels else None


def _curves(records: Iterable[Record]) -> dict[tuple[str, str, str], Curve]:
    """(split, task, metric) -> steps and values, of what has a task and any finite value."""
    curves: dict[tuple[str, str, str], Curve] = {}
    for record in records:
        if record["task"]:
            key = (record["split"], record["task"], record["metric"])
            steps, values = curves.setdefault(key, ([], []))
            steps.append(record["step"])
            values.append(or_nan(record["value"]))
    return {key: curve for key, curve in curves.items() if any(math.isfinite(v) for v in curve[1])}


def _plot(axes: Axes, title: str, lines: Mapping[str, Curve]) -> None:
    for number, (label, (steps, values)) in enumerate(lines.items()):
        axes.plot(
            steps,
            values,
            label=label,
            color=f"C{number % 10}",
            linestyle=("-", "--", ":")[number // 10 % 3],  # ten colours, then other strokes
            marker="o" if len(steps) <= _FEW_POINTS else None,
            markersize=3.5,
            linewidth=1.4,
        )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    if len(lines) > 1:
        columns = math.ceil(len(lines) / 16)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, ncols=columns)


def _save_figure(path: Path, draw: Callable[[Figure], None]) -> str | None:
    try:
        import matplotlib.style
        from matplotlib.figure import Figure
    except ImportError:
        return _NO_PLOTS
    # Whatever style a user has set up; and a figure by itself, as pyplot would choose a window.
    with matplotlib.style.context("default"):
        figure = Figure(dpi=110, layout="constrained", facecolor="white")
        draw(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            figure.savefig(partial, format="png")
    return None
