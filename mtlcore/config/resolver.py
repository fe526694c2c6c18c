"""From layers to a configuration: merged, checked, completed.

All problems are reported at once, each with its path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlcore.config.balancer_table import check_required, read_balancing
from mtlcore.config.data_tables import check_inputs, read_data, read_initial, read_tasks
from mtlcore.config.merging import CORE_DEFAULTS, Layer, MergedConfig
from mtlcore.config.reader import ConfigReader
from mtlcore.config.run_config import RunConfig
from mtlcore.config.schema import TrainingConfig
from mtlcore.config.task_tables import check_keys, read_freeze, read_metrics, read_per_task
from mtlcore.errors import ConfigError, UsageError, did_you_mean
from mtlcore.plugins import Plugins, Selection


def resolve(
    plugins: Plugins, selected: Sequence[str] = (), layers: Sequence[Layer] = ()
) -> RunConfig:
    """Merge, check and complete a configuration.

    The order is: the core's defaults, the presets of what is selected, the layers. Later values
    win.

    Args:
        plugins: Where components are looked up. Plugin files that a layer names are loaded into
            it.
        selected: What `--plugin` would name, in order.
        layers: Configuration files, then the values of `--set`.

    Raises:
        ConfigError: The configuration has problems; the error lists all of them.
        UsageError: A plugin cannot be selected.
    """
    for layer in layers:
        _load_plugin_files(plugins, layer)
    selections = [plugins.selection(word) for word in selected]
    merged = MergedConfig()
    merged.add(Layer("core", CORE_DEFAULTS))
    for word, selection in zip(selected, selections, strict=True):
        merged.add(Layer(f"plugin {word}", selection.preset))
    if selected:
        merged.add(Layer("--plugin", _named_by(selected)))
    for layer in layers:
        merged.add(layer)
    return _read(ConfigReader(plugins, merged), selections)


def _load_plugin_files(plugins: Plugins, layer: Layer) -> None:
    files = layer.values.get("plugins", ())
    if not isinstance(files, list | tuple):
        raise ConfigError([f"plugins: expected a list of plugin files, got {files!r}"])
    for file in files:
        info = plugins.load_file(str(file))
        if info.status != "ok":
            raise UsageError(f"plugins ({layer.origin}): {info}") from info.error


def _named_by(selected: Sequence[str]) -> dict[str, Any]:
    """Return the method's name and the plugin files that the selected words stand for."""
    files = [word for word in selected if word.endswith(".py")]
    method = "+".join(
        Path(word).stem if word in files else word.replace("/", "-") for word in selected
    )
    return {"method": method, **({"plugins": files} if files else {})}


def _read(reader: ConfigReader, selections: Sequence[Selection]) -> RunConfig:
    tree, problems = reader.merged.tree, reader.problems
    for key in tree:
        if key not in CORE_DEFAULTS:
            hint = did_you_mean(key, CORE_DEFAULTS)
            problems.append(f"{key}: unknown{hint} (known: {', '.join(CORE_DEFAULTS)})")
    data, dataset = read_data(reader)
    tasks = read_tasks(reader, dataset)
    backbone = reader.component("backbones", "model.backbone")
    check_inputs(reader, data, dataset, backbone)
    check_keys(reader, tasks)
    heads = read_per_task(reader, "heads", tasks, "model.heads", fallback="model.head")
    freeze = read_freeze(reader, tasks)
    losses = read_per_task(reader, "losses", tasks, "losses")
    metrics = read_metrics(reader, tasks)
    cross_task = reader.components("losses", "cross_task")
    chain, update_every = read_balancing(reader)
    episodes = reader.component("episode-samplers", "episodes")
    optimizer = reader.component("optimizers", "optimizer")
    training = reader.record(TrainingConfig, "training")
    if training and training.epochs is None and training.steps is None:
        problems.append("training: set epochs or steps")
    initial = read_initial(reader, tasks)
    seed, device = reader.value("seed", int), reader.value("device", str)
    method = reader.value("method", str)
    check_required(reader, selections, chain)
    if problems:
        raise ConfigError(problems)
    assert data and dataset and backbone and episodes and optimizer and training
    return RunConfig(
        tree=_without_none(tree),
        origins=dict(reader.merged.origins),
        notes=tuple(reader.merged.notes),
        method=method,
        seed=seed,
        device=device,
        tasks=tasks,
        data=data,
        dataset=dataset,
        backbone=backbone,
        heads=heads,
        losses=losses,
        metrics=metrics,
        cross_task=cross_task,
        chain=chain,
        update_every=update_every,
        episodes=episodes,
        optimizer=optimizer,
        training=training,
        initial=initial,
        freeze=freeze,
    )


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
