"""The commands that train, or show what would be trained: ``mtl run`` and ``mtl config``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mtlcore.cli.components import TRUST, plugins_of
from mtlcore.system import is_main_process, stop_at_once

if TYPE_CHECKING:
    from mtlcore.config import RunConfig
    from mtlcore.plugins import Plugins


def _configuration(command: Any) -> Any:
    """Add the arguments that describe a run."""
    for option in reversed(
        (
            click.argument("config", required=False, type=click.Path()),
            click.option("--plugin", "plugin", multiple=True, metavar="NAME",
                         help="A plugin, a method or a plugin file (.py). Repeat to combine."),
            click.option("--set", "assignments", multiple=True, metavar="PATH=VALUE",
                         help="Override one value of the configuration. Repeatable."),
            click.option("--seed", type=int, help="Same as --set seed=INTEGER."),
            click.option("--device", metavar="DEVICE",
                         help="Same as --set device=DEVICE: auto, cpu, cuda or cuda:1."),
            TRUST,
        )
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@_configuration
@click.option("--out", metavar="DIR", help="Directory or URL of the run.  [default: runs/METHOD-N]")
@click.option("--resume", is_flag=True, help="Resume the run in --out.")
@click.option(
    "--dry-run", is_flag=True, help="Build everything and take one step, but write nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, and no progress.")
@click.pass_context
def run(
    ctx: click.Context,
    config: str | None,
    plugin: tuple[str, ...],
    assignments: tuple[str, ...],
    seed: int | None,
    device: str | None,
    trust: bool,
    out: str | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a model and write a run directory.

    The configuration is made of the core's defaults, the presets of plugins, the TOML file CONFIG
    and the values of --set. Later ones override earlier ones.
    """
    with stop_at_once():
        from mtlcore.display import SilentDisplay, make_display
        from mtlcore.runs import execute, place_of, try_step
        from mtlcore.storage import without_nan

        found = plugins_of(ctx, trust)
    resolved = _resolve(found, config, plugin, assignments, seed, device, out, resume)
    if dry_run:
        if is_main_process():
            _print_notes(resolved)
            click.echo(json.dumps(try_step(resolved), indent=2))
        return
    location = out or place_of(resolved)
    if not is_main_process():
        execute(found, resolved, location, resume, SilentDisplay())
        return
    _print_notes(resolved)
    click.echo(f"run: {location}", err=as_json)
    display = SilentDisplay() if as_json else make_display()
    summary = execute(found, resolved, location, resume, display)
    if as_json:
        click.echo(json.dumps(without_nan(summary), indent=2, allow_nan=False))
    else:
        _print_summary(summary, location)


@click.command("config")
@_configuration
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def config_(
    ctx: click.Context,
    config: str | None,
    plugin: tuple[str, ...],
    assignments: tuple[str, ...],
    seed: int | None,
    device: str | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Show the configuration of a run and its origins.

    The arguments are those of mtl run. Each value is shown with the layer that it comes from.
    """
    resolved = _resolve(plugins_of(ctx, trust), config, plugin, assignments, seed, device)
    _print_notes(resolved)
    if as_json:
        click.echo(json.dumps({"config": resolved.tree, "origins": resolved.origins}, indent=2))
        return
    import tomli_w

    from mtlcore.config import annotated

    click.echo(annotated(tomli_w.dumps(dict(resolved.tree)), resolved.origins))


def _resolve(
    plugins: Plugins,
    config: str | None,
    selected: Sequence[str],
    assignments: Sequence[str],
    seed: int | None,
    device: str | None,
    out: str | None = None,
    resume: bool = False,
) -> RunConfig:
    from mtlcore.config import file_layer
    from mtlcore.runs import configure

    options = {"seed": seed, "device": device}
    return configure(
        plugins,
        selected,
        None if config is None else file_layer(config),
        assignments=assignments,
        options={key: value for key, value in options.items() if value is not None},
        out=out,
        resume=resume,
    )


def _print_notes(config: RunConfig) -> None:
    for note in config.notes:
        click.echo(f"note: {note}", err=True)


def _print_summary(summary: dict[str, Any], location: str) -> None:
    import rich.console

    from mtlcore.report import result_table

    rich.console.Console().print(result_table(summary))
    click.echo(f"pictures and curves: {location}/report")


COMMANDS = [run, config_]
