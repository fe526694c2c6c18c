"""Plugin files: which ones a configuration names, and those of which it uses nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mtlcore.config.merging import Layer
from mtlcore.config.run_config import Chosen, RunConfig
from mtlcore.errors import ConfigError, UsageError, shown
from mtlcore.plugins import PluginInfo, Plugins, Selection

#: Where a run names the component of a kind that it uses.
_NAMED_IN = {
    "methods": "--plugin",
    "balancers": "balancer.name",
    "backbones": "model.backbone.name",
    "necks": "model.neck.name",
    "heads": "model.head.name",
    "losses": "losses.TASK.name or cross_task",
    "metrics": "metrics.TASK.name",
    "datasets": "data.name",
    "augmentations": "data.augmentations",
    "episode-samplers": "episodes.name",
    "optimizers": "optimizer.name",
    "loggers": "loggers",
    "launchers": "launcher.name of a study",
    "searchers": "search.searcher.name of a study",
    "exporters": "mtl export --to",
}


def load_plugin_files(
    plugins: Plugins, selected: Sequence[str], layers: Sequence[Layer]
) -> list[str]:
    """Load the plugin files that layers name; return all, those of `--plugin` first, each once.

    Raises:
        ConfigError: A layer's `plugins` is no list.
        UsageError: A file does not load, or a run names it and nobody asked for it.
    """
    files = [word for word in selected if word.endswith(".py")]
    for file in files:
        plugins.load_file(file)  # whether it did, its selection tells
    named = [(layer, file) for layer in layers for file in _named(layer)]
    # What the user names comes first: a run may name it too.
    for layer, file in sorted(named, key=lambda pair: pair[0].of_run):
        load = plugins.load_file_of_run if layer.of_run else plugins.load_file
        info = load(file)
        if info.status != "ok":
            raise UsageError(f"plugins ({layer.origin}): {info}") from info.error
    return list(dict.fromkeys([*files, *(file for _, file in named)]))


def _named(layer: Layer) -> list[str]:
    named = layer.values.get("plugins", ())
    if not isinstance(named, list | tuple) or not all(isinstance(x, str) for x in named):
        raise ConfigError([f"plugins: expected a list of plugin files, got {shown(named)}"])
    return list(named)


def refuse_loggers_of_runs(plugins: Plugins, layers: Sequence[Layer]) -> None:
    """Refuse loggers that a run names and nobody asked for: they write where they are told to.

    Raises:
        UsageError: There are some.
    """
    deciding = [layer for layer in layers if "loggers" in layer.values][-1:]
    for layer in deciding:
        if layer.of_run and layer.values["loggers"] and not plugins.trusts_runs:
            raise UsageError(
                f"loggers ({layer.origin}): the run's configuration names loggers, which may write "
                "anywhere. Add --trust if the run is your own or you trust whoever made it, or "
                "leave them out with --set loggers=[]"
            )


def notes_of_unused_files(
    plugins: Plugins, config: RunConfig, selections: Sequence[Selection]
) -> Iterator[str]:
    """Yield a line for each plugin file of which a configuration uses nothing."""
    in_use = {selection.plugin for selection in selections if selection.component}
    for field in attrs.fields(RunConfig):
        in_use |= set(_plugins_in(getattr(config, field.name)))
    for file in config.tree["plugins"]:
        info = plugins.load_file(file)
        if info.id not in in_use:
            yield f"{file}: nothing of it is in use; it provides {_offer(info)}"


def _plugins_in(value: Any) -> Iterator[str]:
    """Yield the plugins of the components in a value."""
    if isinstance(value, Chosen):
        yield value.component.plugin
        yield from _plugins_in(value.settings)
    elif isinstance(value, Mapping | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _plugins_in(inner)


def _offer(info: PluginInfo) -> str:
    if not info.provides:
        return "no component"
    return "; ".join(
        f"{kind} {', '.join(names)} (named in {_NAMED_IN[kind]})"
        for kind, names in info.provides.items()
    )
