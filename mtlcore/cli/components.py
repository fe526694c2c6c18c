"""The commands that show what is installed: `mtl plugins`, `mtl list` and `mtl show`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any, final

import click

from mtlcore.cli.descriptions import (
    balancers_by_group,
    list_data,
    plugins_data,
    show_data,
    table,
)
from mtlcore.errors import UsageError
from mtlcore.plugins import KINDS, Plugins, singular
from mtlcore.storage import flatten


@final
class KindChoice(click.Choice[str]):
    """A kind of component, in the plural or the singular."""

    def __init__(self) -> None:
        super().__init__(list(KINDS))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the kind's plural."""
        plurals = {singular(kind): kind for kind in KINDS}
        return super().convert(plurals.get(value, value), param, ctx)


#: The option of commands that read the configuration of a run.
TRUST = click.option(
    "--trust",
    is_flag=True,
    help="Load the plugin files and loggers that a run's configuration names: they are programs.",
)


def plugins_of(ctx: click.Context, trust: bool = False) -> Plugins:
    """Return the plugins that a command works with, scanning for them once.

    `ctx.obj` is the `Plugins`, None, or the group's options: `block` (ids) and `strict` (raise
    if any plugin failed).

    Args:
        ctx: The command's context.
        trust: Whether what the configuration of a run names is loaded.
    """
    if not isinstance(ctx.obj, Plugins):
        options = ctx.obj or {}
        plugins = Plugins.from_environment(options.get("block", ()))
        if options.get("strict"):
            plugins.strict()
        ctx.obj = plugins
    found: Plugins = ctx.obj
    if trust:
        found.trust_runs()
    return found


def with_files(ctx: click.Context, files: Sequence[str]) -> Plugins:
    """Return the plugins that a command works with, the named files among them.

    Raises:
        UsageError: A file does not load, or is none.
    """
    plugins = plugins_of(ctx)
    for file in files:
        if not file.endswith(".py"):
            raise UsageError(
                f"--plugin {file}: name a plugin file (.py); installed plugins always count"
            )
        info = plugins.load_file(file)
        if info.status != "ok":
            raise UsageError(f"--plugin {file}: {info}") from info.error
    return plugins


#: The option of commands that know components of plugin files too.
FILES = click.option(
    "--plugin", "files", multiple=True, metavar="FILE",
    help="A plugin file (.py) whose components count too. Repeatable.",
)  # fmt: skip


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option(
    "--strict-plugins", is_flag=True, help="Exit with status 1 if any plugin failed to load."
)
@click.pass_context
def plugins(ctx: click.Context, as_json: bool, strict_plugins: bool) -> None:
    """List all plugins, and why one does not work."""
    scanned = plugins_of(ctx)
    data = plugins_data(scanned)
    if as_json:
        _print_json(data)
    else:
        _print_plugins(data)
    if strict_plugins:
        scanned.strict()


@click.command("list")
@click.argument("kind", type=KindChoice(), required=False)
@FILES
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def list_(ctx: click.Context, kind: str | None, files: tuple[str, ...], as_json: bool) -> None:
    """List the components of one kind or of all kinds; balancers by what they look at."""
    plugins = with_files(ctx, files)
    if as_json:
        _print_json(list_data(plugins, kind))
        return
    balancers = kind == "balancers"
    data = balancers_by_group(plugins) if balancers else list_data(plugins, kind)
    first = "looks at" if balancers else "kind"
    columns = [*([first] if balancers or kind is None else []), "name", "plugin", "summary"]
    _print_table([columns, *([row[column] for column in columns] for row in data)])


@click.command()
@click.argument("kind", type=KindChoice())
@click.argument("name")
@FILES
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="For methods and backbones: build the network with this value. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def show(
    ctx: click.Context,
    kind: str,
    name: str,
    files: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show a component's origin, paper and settings.

    For a method, show its preset, how many parameters its network has, how many operations a
    prediction takes, and what its backbone computes; the latter for a backbone, too, where --set
    gives it settings.
    """
    data = show_data(with_files(ctx, files), kind, name, overrides)
    if as_json:
        _print_json(data)
    else:
        _print_component(data)


COMMANDS = [plugins, list_, show]


def _print_json(data: Any) -> None:
    # Presets come from TOML, which knows dates; JSON does not.
    click.echo(json.dumps(data, indent=2, default=str))


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table(rows, width):
        click.echo(line)


def _print_plugins(data: list[dict[str, Any]]) -> None:
    rows = [["id", "version", "status", "ms", "distribution", "provides"]]
    for row in data:
        provides = [f"{kind} {', '.join(names)}" for kind, names in row["provides"].items()]
        ms = f"{row['import_ms']:.0f}"
        fixed = [row["id"], row["version"], row["status"], ms, row["distribution"]]
        rows.append([*fixed, "; ".join(provides)])
    _print_table(rows)
    # In full, whatever the width: this is what helps.
    for row in data:
        if row["reason"]:
            click.echo(f"{row['id']} {row['reason']}")


def _print_component(data: dict[str, Any]) -> None:
    apart = ("about", "settings", "preset", "parameters", "prediction", "backbone")
    fields = [key for key in data if key not in apart]
    texts = {key: _text(data[key]) for key in fields}
    for line in table([(f"{key}:", text) for key, text in texts.items() if text]):
        click.echo(line)
    if data.get("about"):
        click.echo(f"\n{data['about']}")
    for setting in data.get("settings", ()):
        default = "None" if setting["default"] is None else json.dumps(setting["default"])
        ending = "(required)" if setting["required"] else f"= {default}"
        click.echo(f"\n{setting['name']}: {setting['type']} {ending}")
        if setting["meaning"]:
            click.echo(f"    {setting['meaning']}")
    if "preset" in data:
        import tomli_w

        click.echo("\n# preset\n" + tomli_w.dumps(data["preset"]).rstrip())
        click.echo("\n# parameters")
        parameters = flatten(data["parameters"])
        for line in table([(f"{key} =", _text(value)) for key, value in parameters.items()]):
            click.echo(line)
    for part in ("prediction", "backbone"):
        if part in data:
            click.echo(f"\n# {part}")
            for line in table([(f"{key} =", _text(value)) for key, value in data[part].items()]):
                click.echo(line)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
