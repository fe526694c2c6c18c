"""The table `[teachers]`: trained runs whose models teach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

from mtlcore.config.merging import Layer
from mtlcore.config.reader import ConfigReader
from mtlcore.config.run_config import RunConfig, TeacherConfig
from mtlcore.errors import ConfigError, MtlError, shown
from mtlcore.storage import trained_config
from mtlcore.tasks import Task


def read_teachers(
    reader: ConfigReader, tasks: Sequence[Task], resolve: Callable[[Sequence[Layer]], RunConfig]
) -> dict[str, TeacherConfig]:
    """Return the trained run of each teacher; a teacher that cannot serve is a problem.

    Args:
        reader: The configuration.
        tasks: The run's tasks; a teacher must know one of them, and know it as the run does.
        resolve: Makes a configuration of layers.
    """
    from mtlcore.models import AVERAGE  # late: it imports torch

    teachers = {}
    for name, value in reader.table("teachers").items():
        path = f"teachers.{name}"
        place = _place(reader, value, path)
        if place is None:
            continue
        location = place.run
        if name == AVERAGE:
            reader.problems.append(
                f"{path}: {AVERAGE!r} is the averaged copy that training.ema keeps; choose another "
                "name"
            )
            continue
        try:
            config = resolve(_layers(reader, location))
        except ConfigError as error:
            reader.problems += [f"{path}: {location}: {problem}" for problem in error.problems]
            continue
        except MtlError as error:
            reader.problems.append(f"{path}: {error}")
            continue
        reader.problems += [f"{path}: {location} {why}" for why in _unfit(config.tasks, tasks)]
        teachers[name] = TeacherConfig(
            location=location, config=config, checkpoint=place.checkpoint
        )
    return teachers


@attrs.frozen(kw_only=True)
class _Place:
    """Where a teacher's weights are: a run, and which of its checkpoints."""

    run: str
    checkpoint: Literal["best", "last"] = "best"


def _place(reader: ConfigReader, value: Any, path: str) -> _Place | None:
    """Return where a teacher is, from the place alone or from a table; None if it is neither."""
    if isinstance(value, str):
        return _Place(run=value)
    if isinstance(value, Mapping):
        place: _Place | None = reader.build(_Place, value, path)
        return place
    reader.problems.append(f"{path}: expected a run's directory or URL, got {shown(value)}")
    return None


def _layers(reader: ConfigReader, location: str) -> list[Layer]:
    """Return the configuration of a run; data that both use is where this run has it."""
    # Its own teachers have taught, and its loggers are told nothing.
    stored: dict[str, Any] = {**trained_config(location), "teachers": {}, "loggers": []}
    data = reader.table("data")
    moved = {"data": {"root": data["root"]}} if data.get("root") else {}
    same = stored.get("data", {}).get("name") == data.get("name")
    return [
        Layer(location, stored, of_run=True),
        *([Layer("data.root", moved)] if same and moved else []),
    ]


def _unfit(known: Sequence[Task], tasks: Sequence[Task]) -> list[str]:
    """Return why a teacher of some tasks cannot teach others, one clause each."""
    own = {task.name: task for task in known}
    shared = [task for task in tasks if task.name in own]
    if tasks and not shared:
        return [
            f"has learnt {', '.join(own)}, and the run has none of these tasks "
            f"(it has: {', '.join(task.name for task in tasks)})"
        ]
    clauses = []
    for task in shared:
        differing = [
            f"{field.name} {getattr(own[task.name], field.name)!r}, not "
            f"{getattr(task, field.name)!r}"
            for field in attrs.fields(Task)
            if field.name != "ignored"  # what it has not learnt to tell it may still be asked
            and getattr(own[task.name], field.name) != getattr(task, field.name)
        ]
        if differing:
            clauses.append(f"has learnt another task {task.name!r}: {'; '.join(differing)}")
    return clauses
