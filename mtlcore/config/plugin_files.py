"""Plugin files: which ones a configuration names, and those of which it uses nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mtlcore.config.merging import Layer
from mtlcore.config.run_config import Chosen, RunConfig
from mtlcore.errors import ConfigError, UsageError
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
}


def load_plugin_files(
    plugins: Plugins, selected: Sequence[str], layers: Sequence[Layer]
) -> list[str]:
    """Load the plugin files that layers name; return all, those of `--plugin` first, each once.

    Raises:
        ConfigError: A layer's `plugins` is no list.
        UsageError: A file does not load.
    """
    files = [word for word in selected if word.endswith(".py")]
    for layer in layers:
        named = layer.values.get("plugins", ())
        if not isinstance(named, list | tuple):
            raise ConfigError([f"plugins: expected a list of plugin files, got {named!r}"])
        for file in map(str, named):
            info = plugins.load_file(file)
            if info.status != "ok":
                raise UsageError(f"plugins ({layer.origin}): {info}") from info.error
            files.append(file)
    return list(dict.fromkeys(files))


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
