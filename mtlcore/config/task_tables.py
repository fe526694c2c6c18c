"""The tables with an entry per task: heads, losses and metrics."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mtlcore.config.merging import leaves
from mtlcore.config.reader import ConfigReader
from mtlcore.config.run_config import Chosen, ChosenMetric
from mtlcore.errors import UsageError, did_you_mean, shown
from mtlcore.plugins import HeadSpec
from mtlcore.tasks import Task

_MODEL_KEYS = ("backbone", "neck", "head", "heads", "freeze")


def check_keys(reader: ConfigReader, tasks: Sequence[Task]) -> None:
    """Report unknown keys of `[model]`, and tasks that the run does not have.

    What a method's preset says of a task that the run leaves out is dropped.
    """
    for key in reader.table("model"):
        if key not in _MODEL_KEYS:
            hint = did_you_mean(key, _MODEL_KEYS)
            reader.problems.append(f"model.{key}: unknown{hint} (known: {', '.join(_MODEL_KEYS)})")
    names = [task.name for task in tasks]
    for path in ("model.heads", "losses", "metrics"):
        for key in [key for key in reader.table(path) if names and key not in names]:
            if _of_preset(reader, f"{path}.{key}"):
                reader.merged.drop(f"{path}.{key}")
            else:
                hint = did_you_mean(key, names)
                reader.problems.append(f"{path}.{key}: the run has no such task{hint}")


def _of_preset(reader: ConfigReader, path: str) -> bool:
    """Return whether all that is at a path comes from methods that were selected."""
    origins = [reader.merged.origins.get(leaf, "") for leaf in leaves(path, reader.at(path))]
    return all(origin.startswith("plugin ") for origin in origins)


def read_per_task(
    reader: ConfigReader,
    kind: str,
    tasks: Sequence[Task],
    path: str,
    fallback: str | None = None,
    core: Sequence[str] = (),
) -> dict[str, Chosen]:
    """Return the component of each task.

    Args:
        reader: The configuration.
        kind: The kind of component.
        tasks: The tasks.
        path: The table whose keys are tasks.
        fallback: The table that holds for tasks without one of their own. Where neither names a
            component, it is the default one for the task's kind and layout.
        core: Keys of a component's table that the core itself reads.
    """
    result = {}
    for task in tasks:
        task_path = f"{path}.{task.name}"
        table = reader.table(task_path)
        if not table and fallback and reader.table(fallback):
            table = copy.deepcopy(reader.table(fallback))
            reader.put(task_path, table, reader.merged.origins.get(f"{fallback}.name", "core"))
        try:
            if not table.get("name"):
                component = reader.plugins.default(kind, task.kind, task.layout)
                reader.put(task_path, {"name": component.spec.name, **table}, "default")
        except UsageError as error:
            reader.problems.append(f"{task_path}.name: {error}")
            continue
        chosen = reader.component(kind, task_path, core)
        if chosen is None:
            continue
        _check_serves(reader, chosen, task, task_path)
        result[task.name] = chosen
    return result


def read_metrics(
    reader: ConfigReader, tasks: Sequence[Task], declared: Sequence[Task]
) -> dict[str, tuple[ChosenMetric, ...]]:
    """Return the metrics of each task: one is a table, several are a list of tables.

    Args:
        reader: The configuration.
        tasks: Those of the run.
        declared: Those that the dataset has labels of, whose classes may be regions.
    """
    core = ("regions",)
    with_list = [task for task in tasks if isinstance(reader.at(f"metrics.{task.name}"), list)]
    others = [task for task in tasks if task not in with_list]
    chosen = read_per_task(reader, "metrics", others, "metrics", core=core)
    metrics: dict[str, tuple[ChosenMetric, ...]] = {}
    for task in others:
        if task.name in chosen:
            path = f"metrics.{task.name}"
            regions = _regions(reader, reader.table(path), task, declared, path)
            metrics[task.name] = (ChosenMetric(chosen[task.name], regions),)
    for task in with_list:
        path, listed = f"metrics.{task.name}", reader.at(f"metrics.{task.name}")
        if not listed:
            reader.problems.append(f"{path}: an empty list; name at least one metric")
        found = []
        for number, table in enumerate(reader.tables(path)):
            one = reader.component("metrics", f"{path}[{number}]", core, table)
            if one is not None:
                _check_serves(reader, one, task, f"{path}[{number}]")
                regions = _regions(reader, table, task, declared, f"{path}[{number}]")
                found.append(ChosenMetric(one, regions))
        metrics[task.name] = tuple(found)
    return metrics


def _regions(
    reader: ConfigReader,
    table: Mapping[str, Any],
    task: Task,
    declared: Sequence[Task],
    path: str,
) -> Task | None:
    """Return the task in the regions of whose classes a metric is computed as well."""
    name = table.get("regions")
    if name is None:
        return None
    known = {other.name: other for other in declared if other.dtype == "int64"}
    found = known.get(name) if isinstance(name, str) else None
    if found is None:
        hint = did_you_mean(name, known) if isinstance(name, str) else ""
        reader.problems.append(
            f"{path}.regions: {shown(name)} is no task of the dataset that has classes{hint} "
            f"(these have: {', '.join(known) or 'none'})"
        )
    elif found.is_dense and task.layout != found.layout:
        reader.problems.append(
            f"{path}.regions: {name} has {_predicted([found.layout])}, and {task.name} has not"
        )
    else:
        return found
    return None


def _check_serves(reader: ConfigReader, chosen: Chosen, task: Task, path: str) -> None:
    spec = chosen.component.spec
    serves = getattr(spec, "serves", None)
    if serves is None or not serves(task.kind):
        reader.problems.append(
            f"{path}.name: {spec.name!r} does not serve tasks of kind {task.kind!r}"
        )
    elif isinstance(spec, HeadSpec) and task.layout not in spec.layouts:
        heads = [component.spec for component in reader.plugins.all("heads")]
        others = [
            head.name
            for head in heads
            if isinstance(head, HeadSpec) and head.serves(task.kind) and task.layout in head.layouts
        ]
        reader.problems.append(
            f"{path}.name: {spec.name!r} predicts {_predicted(spec.layouts)}, and the task "
            f"{task.name!r} has {_predicted([task.layout])}; heads that predict that: "
            f"{', '.join(others) or 'none'} (--set {path}.name=...)"
        )


def _predicted(layouts: Sequence[str]) -> str:
    words = {
        "map": "a value per pixel",
        "sequence": "a value per place of a sequence",
        "vector": "values per sample",
        "label": "a class per sample",
    }
    return " or ".join(words[layout] for layout in layouts)
