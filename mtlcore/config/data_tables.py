"""The tables `[data]` and `[initial]`, and the tasks that the dataset declares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import attrs

from mtlcore.config.reader import ConfigReader
from mtlcore.config.run_config import Chosen
from mtlcore.config.schema import DataConfig, InitialConfig
from mtlcore.errors import ConfigError, MtlError, did_you_mean
from mtlcore.tasks import Task


def read_data(reader: ConfigReader) -> tuple[DataConfig | None, Chosen | None]:
    """Return the core's part of `[data]` and the dataset; None for what is wrong."""
    table = reader.table("data")
    if "size" in table:
        table["size"] = _size(table["size"])
    core = {field.name for field in attrs.fields(DataConfig)}
    data = reader.build(DataConfig, {k: v for k, v in table.items() if k in core}, "data")
    given = {key: value for key, value in table.items() if key not in core}
    component = reader.find("datasets", table.get("name"), "data.name")
    if component is None:
        return data, None
    target = component.load()
    reserved = (*(["size"] if target.renders_size else []),
                *(["samples"] if target.unlimited else []))  # fmt: skip
    dataset = reader.with_settings(component, given, "data", reserved=reserved, others=sorted(core))
    if data is not None:
        reader.complete(DataConfig, "data")
    return data, dataset


def read_tasks(reader: ConfigReader, dataset: Chosen | None) -> tuple[Task, ...]:
    """Return the run's tasks, all that the dataset declares where `tasks` names none."""
    if dataset is None:
        return ()
    root = reader.table("data").get("root")
    try:
        declared = dataset.component.load().describe(root, **dataset.settings)
    except ConfigError as error:
        reader.problems += error.problems
        return ()
    except MtlError as error:
        reader.problems.append(f"data: {error}")
        return ()
    by_name = {task.name: task for task in declared}
    wanted = reader.value("tasks", list) or list(by_name)
    for name in wanted:
        if name not in by_name:
            hint = did_you_mean(str(name), by_name)
            reader.problems.append(
                f"tasks: the dataset {dataset.component.spec.name!r} declares no task "
                f"{name!r}{hint} (it has: {', '.join(by_name)})"
            )
    names = [name for name in wanted if name in by_name]
    reader.merged.tree["tasks"] = names
    return tuple(by_name[name] for name in names)


def read_initial(reader: ConfigReader, tasks: Sequence[Task]) -> InitialConfig | None:
    """Return where the first weights come from; None if they are drawn."""
    if not reader.table("initial"):
        return None
    initial: InitialConfig | None = reader.record(InitialConfig, "initial")
    if initial is None:
        return None
    names = [task.name for task in tasks]
    for name in initial.new:
        if names and name not in names:
            hint = did_you_mean(name, names)
            reader.problems.append(f"initial.new: the run has no task {name!r}{hint}")
    if initial.train != "all" and not initial.new:
        reader.problems.append(
            f"initial.train: {initial.train!r} trains the tasks that initial.new names, and it "
            "names none"
        )
    return initial


def _size(value: Any) -> Any:
    """Take `96x128` as well as [96, 128]."""
    match = re.fullmatch(r"(\d+)x(\d+)", value) if isinstance(value, str) else None
    return [int(match[1]), int(match[2])] if match else value
