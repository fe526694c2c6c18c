"""The configuration of a run that starts, and of one that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlcore.config import Layer, RunConfig, resolve, set_layer
from mtlcore.errors import UsageError
from mtlcore.plugins import Plugins
from mtlcore.storage import stored_config


def configure(
    plugins: Plugins,
    selected: Sequence[str] = (),
    config: Layer | None = None,
    *,
    assignments: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    out: str | None = None,
    resume: bool = False,
) -> RunConfig:
    """Resolve what a run is given, over its own configuration where it goes on.

    A run that goes on needs no arguments: it has a configuration in its directory. Assignments and
    options are laid over that one; plugins or a configuration say all of it anew.

    Args:
        plugins: Where components are looked up.
        selected: What `--plugin` names.
        config: A configuration; None: none was given.
        assignments: `path=value`, as of `--set`.
        options: Top-level values that are no assignments, such as the device.
        out: Directory or URL of the run; None: it has none yet.
        resume: Whether to go on with the run in `out`.

    Raises:
        UsageError: `out` is missing, there is no run to go on with and nothing to start, or the
            run names a plugin file or a logger that nobody asked for.
        ConfigError: The configuration has problems.
    """
    if resume and not out:
        raise UsageError("--resume needs --out DIR: the run to go on with")
    whole = config is not None or bool(selected)
    stored = stored_config(out) if resume and out and not whole else None
    if resume and stored is None and not (whole or assignments):
        raise UsageError(
            f"--resume --out {out}: no run there to go on with (it has no config.toml); is that "
            "its name? With a plugin, a file or --set a run starts where there is none yet"
        )
    layers = [Layer("the run", stored, of_run=True)] if stored else []
    if config is not None:
        layers.append(config)
    layers += [set_layer(assignments), Layer("options", options or {})]
    return resolve(plugins, selected, layers)
