"""A table of relations and the groups chosen by it: as text, as data, and as files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlcore.grouping.checking import Check
from mtlcore.grouping.relations import Relations
from mtlcore.grouping.search import Grouping, score_of
from mtlcore.report import heat_map
from mtlcore.results import RunResult, markdown_table
from mtlcore.storage import written_whole

#: What the study of a run's tasks leaves to its own file.
_NOT_OF_A_BASE = ("method", "seed", "device", "initial", "loggers")


def as_text(
    relations: Relations, grouping: Grouping | None = None, check: Check | None = None
) -> str:
    """Return the table, as Markdown that is read as it is, the groups, and what runs say of it."""
    tasks = relations.tasks
    head = ["from, to" if relations.directed else "", *tasks]
    rows = [[source, *(_cell(relations, source, target) for target in tasks)] for source in tasks]
    parts = [relations.measure, markdown_table(head, rows), _read(relations)]
    if grouping is not None:
        groups = "; ".join(", ".join(group) for group in grouping.groups)
        together = score_of(relations, [tasks])
        parts.append(
            f"The best {len(grouping.groups)} group(s): {groups}\n"
            f"What a task gets from its group, in the mean: {grouping.score:.4g}; with all tasks "
            f"in one network {together:.4g}, alone 0"
        )
    if check is not None:
        parts.append(_told(check))
    return "\n\n".join(parts)


def as_data(
    relations: Relations, grouping: Grouping | None = None, check: Check | None = None
) -> dict[str, Any]:
    """Return the same as a tree of JSON values; what is unknown is NaN."""
    data: dict[str, Any] = {
        "measure": relations.measure,
        "tasks": list(relations.tasks),
        "directed": relations.directed,
        "pairs": [
            {
                "source": source,
                "target": target,
                "mean": value.mean,
                "interval": list(value.interval),
                "runs": value.n,
            }
            for (source, target), value in relations.values.items()
        ],
    }
    if grouping is not None:
        data["groups"] = [list(group) for group in grouping.groups]
        data["score"] = grouping.score
    if check is not None:
        data["check"] = {
            "correlation": check.correlation,
            "compared": check.compared,
            "chosen": check.chosen,
            "best": None if check.best is None else [list(group) for group in check.best.groups],
            "best_gain": math.nan if check.best is None else check.best.score,
        }
    return data


def write_grouping(
    directory: Path,
    relations: Relations,
    grouping: Grouping,
    run: RunResult,
    check: Check | None = None,
) -> Path:
    """Write the table, its picture, and the study that trains the groups; return its path.

    Args:
        directory: Where to; made if it is not there.
        relations: The table.
        grouping: The groups chosen by it.
        run: Whose configuration the study's runs have.
        check: What runs say of the table.

    Raises:
        OSError: A file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with written_whole(directory / "relations.md") as partial:
        partial.write_text(as_text(relations, grouping, check) + "\n", "utf-8")
    picture = heat_map(
        relations.measure,
        relations.tasks,
        {pair: value.mean for pair, value in relations.values.items()},
    )
    with written_whole(directory / "relations.svg") as partial:
        partial.write_text(picture + "\n", "utf-8")
    groups = [list(group) for group in grouping.groups]
    variants = {"single-task": {}, "together": {}, "groups": {"groups": groups}}
    return _write_study(directory / "study.toml", f"Groups of {run.method}", run, variants)


def write_pairs(directory: Path, run: RunResult) -> Path:
    """Write the study that trains every task alone and every pair of tasks; return its path.

    Args:
        directory: Where to; made if it is not there.
        run: Whose tasks and configuration the study's runs have.
    """
    directory.mkdir(parents=True, exist_ok=True)
    variants: dict[str, dict[str, Any]] = {"single-task": {}}
    for number, groups in enumerate(_rounds(run.tasks), 1):
        variants[f"pairs-{number}"] = {"groups": groups}
    return _write_study(directory / "pairs.toml", f"Pairs of {run.method}", run, variants)


def _rounds(tasks: Sequence[str]) -> list[list[list[str]]]:
    """Return all pairs as rounds in which each task is in one group: the circle of a tournament."""
    circle: list[str | None] = [*tasks, *([None] if len(tasks) % 2 else [])]
    rounds = []
    for _ in range(len(circle) - 1):
        halves = zip(circle[: len(circle) // 2], reversed(circle), strict=False)
        rounds.append([[task for task in pair if task is not None] for pair in halves])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds


def _write_study(
    path: Path, title: str, run: RunResult, variants: Mapping[str, Mapping[str, Any]]
) -> Path:
    import tomli_w

    base = {key: value for key, value in run.config.items() if key not in _NOT_OF_A_BASE}
    study = {
        "name": title,
        "seeds": [run.seed + number for number in range(3)],
        "baseline": "single-task",
        "base": base,
        "variants": variants,
    }
    with written_whole(path) as partial:
        partial.write_text(tomli_w.dumps(study), "utf-8")
    return path


def _cell(relations: Relations, source: str, target: str) -> str:
    value = relations.values.get((source, target))
    if source == target or value is None:
        return ""
    low, high = value.interval
    return f"{value.mean:.3g}" + (f" [{low:.2g}, {high:.2g}]" if value.n > 1 else "")


def _told(check: Check) -> str:
    lines = [
        f"Against runs of groups: rank correlation {check.correlation:.2f} over {check.compared} "
        "tasks in groups"
    ]
    if math.isfinite(check.chosen):
        lines.append(f"Tasks are better in the chosen groups than alone by {check.chosen:.3g} %")
    else:
        lines.append("Not all of the chosen groups were trained")
    if check.best is not None:
        groups = "; ".join(", ".join(group) for group in check.best.groups)
        lines.append(f"The best groups by these runs: {groups}: {check.best.score:.3g} %")
    return "\n".join(lines)


def _read(relations: Relations) -> str:
    direction = (
        "Each row is what a task does to those of the columns"
        if relations.directed
        else ("The same in both directions")
    )
    runs = max(value.n for value in relations.values.values())
    interval = (
        f"means of {runs} runs with Student's 95 % interval"
        if runs > 1
        else "of a single run, so that no interval can be told"
    )
    return f"{direction}; higher is better; {interval}."
