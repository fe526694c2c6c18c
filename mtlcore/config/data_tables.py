"""The tables `[data]` and `[initial]`, and the tasks that the dataset declares."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import attrs

from mtlcore.config.reader import ConfigReader
from mtlcore.config.run_config import Chosen
from mtlcore.config.schema import DataConfig, InitialConfig
from mtlcore.errors import ConfigError, MtlError, did_you_mean, shown
from mtlcore.tasks import KINDS, Task

#: File systems end names at 255 bytes, and those of pictures hold more than the task.
_LONGEST_NAME = 100


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


def read_tasks(
    reader: ConfigReader, data: DataConfig | None, dataset: Chosen | None
) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """Return the run's tasks, all that the dataset declares where `tasks` names none; and all.

    They say which of their classes `data.ignore_classes` leaves out, and whether they are learnt in
    standard deviations (`data.standardise`).
    """
    if dataset is None:
        return (), ()
    root = reader.table("data").get("root")
    try:
        declared = dataset.component.load().describe(root, **dataset.settings)
    except ConfigError as error:
        reader.problems += error.problems
        return (), ()
    except MtlError as error:
        reader.problems.append(f"data: {error}")
        return (), ()
    by_name = {task.name: task for task in declared}
    for name, classes in (data.ignore_classes if data else {}).items():
        path = f"data.ignore_classes.{name}"
        if name not in by_name:
            hint = did_you_mean(name, by_name)
            reader.problems.append(f"{path}: the dataset declares no such task{hint}")
            continue
        by_name[name] = _ignoring(reader, by_name[name], classes, path)
    for kind in data.standardise if data else ():
        by_name |= _standardised(reader, by_name, kind)
    wanted = reader.value("tasks", list[str]) or list(by_name)
    for name in sorted({name for name in wanted if wanted.count(name) > 1}):
        reader.problems.append(f"tasks: names {name!r} more than once; name it once")
    for name in wanted:
        if name not in by_name:
            hint = did_you_mean(name, by_name)
            reader.problems.append(
                f"tasks: the dataset {dataset.component.spec.name!r} declares no task "
                f"{name!r}{hint} (it has: {', '.join(by_name)})"
            )
        elif len(name) > _LONGEST_NAME:
            reader.problems.append(
                f"tasks: {shown(name)} names files, and is longer than {_LONGEST_NAME} characters"
            )
    names = [name for name in wanted if name in by_name]
    reader.merged.tree["tasks"] = names
    return tuple(by_name[name] for name in names), tuple(by_name.values())


def _standardised(reader: ConfigReader, by_name: dict[str, Task], kind: str) -> dict[str, Task]:
    """Return the tasks of a kind, learnt in standard deviations; there need not be any."""
    found = {name: task for name, task in by_name.items() if task.kind == kind}
    known = {*KINDS, *(task.kind for task in by_name.values())}
    like = Task(name="any", kind=kind, channels=1)
    if kind not in known:
        hint = did_you_mean(kind, known)
        reader.problems.append(f"data.standardise: no task is of the kind {kind!r}{hint}")
    elif like.dtype != "float32" or like.values not in ("finite", "positive"):
        reader.problems.append(
            f"data.standardise: values of the kind {kind!r} have a scale of their own, from which "
            "nothing may move them; leave it out"
        )
    else:
        return {name: attrs.evolve(task, standardise=True) for name, task in found.items()}
    return {}


def _ignoring(reader: ConfigReader, task: Task, classes: Sequence[str | int], path: str) -> Task:
    """Return a task that ignores some of its classes."""
    numbers = []
    for given in classes:
        if isinstance(given, str) and given not in task.class_names:
            hint = did_you_mean(given, task.class_names)
            known = ", ".join(task.class_names) or "no names"
            reader.problems.append(f"{path}: no class {given!r}{hint} (the classes have: {known})")
            continue
        numbers.append(task.class_names.index(given) if isinstance(given, str) else given)
    try:
        return attrs.evolve(task, ignored=tuple(numbers))
    except ValueError as error:
        reader.problems.append(f"{path}: {error}")
        return task


def check_inputs(
    reader: ConfigReader, data: DataConfig | None, dataset: Chosen | None, backbone: Chosen | None
) -> None:
    """Report a backbone that cannot read the dataset's inputs, and changes to what is no image."""
    if dataset is None or backbone is None or data is None:
        return
    try:
        target = dataset.component.load()
        given = target.kind_of_inputs(reader.table("data").get("root"), **dataset.settings)
    except ConfigError as error:
        reader.problems += error.problems
        return
    except MtlError as error:
        reader.problems.append(f"data: {error}")
        return
    name = dataset.component.spec.name
    reader_of_inputs = _innermost(backbone).component
    if not _goes_with(target, given, reader_of_inputs.load()):
        reads = _reads(reader_of_inputs.load())
        reader.problems.append(
            f"model.backbone.name: {reader_of_inputs.spec.name!r} reads {reads} inputs, and the "
            f"dataset {name!r} gives {given} inputs; backbones that read {given}: "
            f"{_others(reader, 'backbones', given)}; datasets that give {reads}: "
            f"{_others(reader, 'datasets', reads)}"
        )
    if given == "image":
        return
    augment = data.augment
    asked = {
        "data.augment": augment.flip or any(scale != 1 for scale in augment.scales),
        "data.size": data.size is not None,
    }
    reader.problems += [
        f"{path}: changes images, and the dataset {name!r} gives {given} inputs; leave it out"
        for path, changes in asked.items()
        if changes
    ]


def _innermost(backbone: Chosen) -> Chosen:
    """Return the backbone that reads the inputs: itself, or the one that it is around."""
    inner = backbone.settings.get(getattr(backbone.component.load(), "reads_through", ""))
    return _innermost(inner) if isinstance(inner, Chosen) else backbone


def _goes_with(dataset: Any, given: str, backbone: Any) -> bool:
    reads = _reads(backbone)
    # There were vectors before there were names for kinds: what names none may mean either.
    silent = [x for x in (dataset, backbone) if not _names_a_kind(x)]
    return given == reads or (bool(silent) and {given, reads} == {"image", "vector"})


def _reads(target: Any) -> str:
    """Return the kind of inputs of a dataset or backbone, also where that is a function."""
    kind: str = getattr(target, "input_kind", "image")
    return kind


def _names_a_kind(target: Any) -> bool:
    from mtlcore.data import Dataset
    from mtlcore.models import Backbone

    classes = [c for c in getattr(target, "__mro__", ()) if c not in (Dataset, Backbone)]
    return any({"input_kind", "kind_of_inputs"} & vars(c).keys() for c in classes)


def _others(reader: ConfigReader, kind: str, wanted: str) -> str:
    """Return the names of the components of a kind that have these inputs."""
    found = []
    for component in reader.plugins.all(kind):
        try:
            if _reads(component.load()) == wanted:
                found.append(component.spec.name)
        except MtlError:  # its own message is shown to who asks for it
            continue
    return ", ".join(sorted(found)) or "none"


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
