"""From layers to a configuration: merged, checked, completed.

All problems are reported at once, each with its path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from mtlcore.config.balancer_table import check_required, read_balancing
from mtlcore.config.data_tables import check_inputs, read_data, read_initial, read_tasks
from mtlcore.config.merging import CORE, CORE_DEFAULTS, Layer, MergedConfig
from mtlcore.config.model_table import read_backbone, read_freeze, read_neck
from mtlcore.config.plugin_files import (
    load_plugin_files,
    notes_of_unused_files,
    refuse_loggers_of_runs,
)
from mtlcore.config.reader import ConfigReader
from mtlcore.config.run_config import Chosen, ChosenData, RunConfig
from mtlcore.config.schema import TrainingConfig
from mtlcore.config.task_tables import check_keys, read_metrics, read_per_task
from mtlcore.config.teacher_table import read_teachers
from mtlcore.errors import ConfigError, did_you_mean
from mtlcore.plugins import NotPlain, Plugins, Selection, as_plain
from mtlcore.ranges import Name, Seed
from mtlcore.tasks import Task


def resolve(
    plugins: Plugins, selected: Sequence[str] = (), layers: Sequence[Layer] = ()
) -> RunConfig:
    """Merge, check and complete a configuration.

    The order is: the core's defaults, the presets of what is selected, the layers. Later values
    win. A selected logger is added to those that the layers name.

    Args:
        plugins: Where components are looked up. Plugin files that a layer names are loaded into
            it.
        selected: What `--plugin` would name, in order.
        layers: Configuration files, then the values of `--set`.

    Raises:
        ConfigError: The configuration has problems; the error lists all of them.
        UsageError: A plugin cannot be selected, or a run names a plugin file or a logger that
            nobody asked for.
    """
    refuse_loggers_of_runs(plugins, layers)
    merged, selections = _merged(plugins, selected, layers)
    config = _read(ConfigReader(plugins, merged), selections)
    unused = notes_of_unused_files(plugins, config, selections)
    return attrs.evolve(config, notes=(*config.notes, *unused))


def _merged(
    plugins: Plugins, selected: Sequence[str], layers: Sequence[Layer]
) -> tuple[MergedConfig, list[Selection]]:
    """Return the merged layers, the core's own first, and what is selected."""
    files = load_plugin_files(plugins, selected, layers)
    selections = [plugins.selection(word) for word in selected]
    merged = MergedConfig()
    merged.add(Layer(CORE, CORE_DEFAULTS))
    for word, selection in zip(selected, selections, strict=True):
        merged.add(Layer(f"plugin {word}", selection.preset))
    named = _named_by(selected, selections)
    if named:
        merged.add(Layer("--plugin", named))
    for layer in layers:
        merged.add(layer)
    for word, selection in zip(selected, selections, strict=True):
        if selection.logger is not None:
            merged.add_logger(selection.logger, f"plugin {word}")
    merged.tree["plugins"] = files
    return merged, selections


def resolve_data(
    plugins: Plugins, selected: Sequence[str] = (), layers: Sequence[Layer] = ()
) -> ChosenData:
    """Return the data of a configuration, whatever would be trained on it.

    Args:
        plugins: As of `resolve`.
        selected: As of `resolve`.
        layers: As of `resolve`.

    Raises:
        ConfigError: `[data]` or `tasks` have problems; the error lists all of them.
        UsageError: A plugin cannot be selected, or a run names a plugin file that nobody asked for.
    """
    merged, _ = _merged(plugins, selected, layers)
    reader = ConfigReader(plugins, merged)
    _check_tables(reader)
    data, dataset = read_data(reader)
    tasks, _ = read_tasks(reader, data, dataset)
    if reader.problems or data is None or dataset is None:
        raise ConfigError(reader.problems)
    return ChosenData(data=data, dataset=dataset, tasks=tasks, origins=dict(merged.origins))


def resolve_backbone(plugins: Plugins, layers: Sequence[Layer]) -> tuple[Chosen, tuple[Task, ...]]:
    """Return the backbone of layers and the tasks of their dataset, which need not fit together.

    Args:
        plugins: Where components are looked up.
        layers: As of `resolve`.

    Raises:
        ConfigError: The tables of the two have problems; the error lists all of them.
    """
    merged = MergedConfig()
    for layer in (Layer(CORE, CORE_DEFAULTS), *layers):
        merged.add(layer)
    reader = ConfigReader(plugins, merged)
    _check_tables(reader)
    tasks, _ = read_tasks(reader, *read_data(reader))
    backbone, _ = read_backbone(reader)
    if reader.problems or backbone is None:
        raise ConfigError(reader.problems)
    return backbone, tasks


def resolve_logger(plugins: Plugins, table: Mapping[str, Any]) -> Chosen:
    """Return the logger that a table of the list `loggers` names.

    Args:
        plugins: Where it is looked up.
        table: Its name and settings.

    Raises:
        ConfigError: There is none of that name, or it does not take these settings.
    """
    merged = MergedConfig()
    merged.add(Layer("logger", {"loggers": [table]}))
    reader = ConfigReader(plugins, merged)
    chosen = reader.components("loggers", "loggers")
    if reader.problems:
        raise ConfigError(reader.problems)
    return chosen[0]


def _named_by(selected: Sequence[str], selections: Sequence[Selection]) -> dict[str, Any]:
    """Return the method's name and the plugin files that the selected words stand for."""
    files = [word for word in selected if word.endswith(".py")]
    names = [
        selection.component.spec.name if word in files else word.replace("/", "-")
        for word, selection in zip(selected, selections, strict=True)
        # A file may have no component to select, and a logger is no part of a method.
        if selection.component and selection.logger is None
    ]
    method = {"method": "+".join(names)} if names else {}
    return {**method, **({"plugins": files} if files else {})}


def _read(reader: ConfigReader, selections: Sequence[Selection]) -> RunConfig:
    tree, problems = reader.merged.tree, reader.problems
    _check_tables(reader)
    data, dataset = read_data(reader)
    tasks, declared = read_tasks(reader, data, dataset)
    listed = data is not None and bool(data.augmentations)
    augmentations = reader.components("augmentations", "data.augmentations") if listed else ()
    backbone, rates = read_backbone(reader)
    check_inputs(reader, data, dataset, backbone)
    check_keys(reader, tasks)
    neck, neck_config = read_neck(reader)
    heads = read_per_task(reader, "heads", tasks, "model.heads", fallback="model.head")
    freeze = read_freeze(reader, tasks)
    losses = read_per_task(reader, "losses", tasks, "losses")
    metrics = read_metrics(reader, tasks, declared)
    cross_task = reader.components("losses", "cross_task")
    chain, balancing = read_balancing(reader)
    episodes = reader.component("episode-samplers", "episodes")
    optimizer = reader.component("optimizers", "optimizer")
    training = reader.record(TrainingConfig, "training")
    if training and training.epochs is None and training.steps is None:
        problems.append("training: set epochs or steps")
    loggers = reader.components("loggers", "loggers")
    initial = read_initial(reader, tasks)
    teachers = read_teachers(reader, tasks, partial(resolve, reader.plugins, ()))
    seed, device = reader.value("seed", Seed), reader.value("device", Name)
    method = reader.value("method", Name)
    problems += _unsafe_name(method) if method else []
    check_required(reader, selections, chain)
    plain = _plain(tree, problems)
    if problems:
        raise ConfigError(problems)
    assert data and dataset and backbone and episodes and optimizer and training
    return RunConfig(
        tree=plain,
        origins=dict(reader.merged.origins),
        notes=tuple(reader.merged.notes),
        method=method,
        seed=seed,
        device=device,
        tasks=tasks,
        data=data,
        dataset=dataset,
        augmentations=augmentations,
        backbone=backbone,
        rates=rates,
        neck=neck,
        neck_per_task=neck_config.per_task,
        heads=heads,
        losses=losses,
        metrics=metrics,
        cross_task=cross_task,
        chain=chain,
        balancing=balancing,
        episodes=episodes,
        optimizer=optimizer,
        training=training,
        loggers=loggers,
        initial=initial,
        teachers=teachers,
        freeze=freeze,
    )


def _check_tables(reader: ConfigReader) -> None:
    for key in reader.merged.tree:
        if key not in CORE_DEFAULTS:
            hint = did_you_mean(key, CORE_DEFAULTS)
            reader.problems.append(f"{key}: unknown{hint} (known: {', '.join(CORE_DEFAULTS)})")


def _unsafe_name(method: str) -> list[str]:
    """Return why a method's name cannot be that of a directory; directories of runs bear it."""
    if not re.search(r"[/\\\x00-\x1f\x7f]", method) and not method.startswith("."):
        return []
    return [
        f"method: {method!r} names directories of runs; leave out slashes, control characters and "
        "a dot at its beginning"
    ]


def _plain(tree: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return a configuration as TOML has it, without what is None."""
    plain = {}
    for key, value in tree.items():
        try:
            plain[key] = _without_none(as_plain(value))
        except NotPlain as error:
            problems.append(f"{key}: {error}")
    return plain


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
