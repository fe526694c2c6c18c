"""The `mtl` command. Light until a command runs: nothing here imports torch at the top."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mtlcore import (
    __version__,
    cli_adapt,
    cli_answers,
    cli_inspect,
    cli_new_plugin,
    cli_report,
    cli_trained,
)
from mtlcore.cli_inspect import plugins_of
from mtlcore.errors import MtlError, UsageError
from mtlcore.signals import EXIT_CODE, stop_at_once, stop_by_exception

if TYPE_CHECKING:
    from mtlcore.config import RunConfig
    from mtlcore.plugins import Plugins


class _Group(click.Group):
    """Turns mtlcore's errors into messages: no traceback unless --traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with stop_by_exception(), _warnings_as_notes():
                return super().invoke(ctx)
        except MtlError as error:
            if ctx.params.get("traceback"):
                raise
            if _speaks() or error.exit_code != EXIT_CODE:  # all are stopped alike
                click.echo(f"mtl: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("mtl: stopped", err=True)
            sys.exit(EXIT_CODE)
        except BrokenPipeError:
            # The reader (`mtl list | head`) has what it wanted; not all was written all the same.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


def _speaks() -> bool:
    """Whether this is the first, or only, one of the processes that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """What the core or a plugin warns of is for people: without a place in the code."""
    with warnings.catch_warnings():
        elsewhere = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if category is UserWarning:
                click.echo(f"note: {message}", err=True)
            else:
                elsewhere(message, category, *place, **more)

        warnings.showwarning = show
        yield


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mtl")
@click.option("--no-plugin", "block", multiple=True, metavar="ID", help="Do not load this plugin.")
@click.option("--strict-plugins", is_flag=True, help="Fail if any installed plugin does.")
@click.option("--traceback", is_flag=True, help="Show where in the code an error came from.")
@click.pass_context
def main(ctx: click.Context, block: tuple[str, ...], strict_plugins: bool, traceback: bool) -> None:
    """Train one model on many tasks."""
    if ctx.obj is None:
        ctx.obj = {"block": block, "strict": strict_plugins}


def _configuration(command: Any) -> Any:
    """The arguments that describe a run."""
    for option in reversed(
        (
            click.argument("config", required=False, type=click.Path()),
            click.option("--plugin", "plugin", multiple=True, metavar="NAME",
                         help="A plugin, a method or a plugin file; repeat to combine."),
            click.option("--set", "assignments", multiple=True, metavar="PATH=VALUE",
                         help="Override one value of the configuration."),
            click.option("--seed", type=int, help="Same as --set seed=N."),
            click.option("--device", help="Same as --set device=D: auto, cpu, cuda, cuda:1."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@_configuration
@click.option("--out", help="Directory or URL of the run; default runs/<method>-<n>.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--dry-run", is_flag=True, help="Build everything, take one step, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON at the end.")
@click.pass_context
def run(
    ctx: click.Context,
    config: str | None,
    plugin: tuple[str, ...],
    assignments: tuple[str, ...],
    seed: int | None,
    device: str | None,
    out: str | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train: the core's defaults, changed by plugins, CONFIG and --set."""
    if resume and not out:
        raise UsageError("--resume needs --out DIR: the run to go on with")
    with stop_at_once():
        import mtlcore.training  # noqa: F401 (imported here, where a signal does no harm)
        from mtlcore import api
        from mtlcore.display import SilentDisplay, make_display
        from mtlcore.nulls import without_nan
        from mtlcore.rundir import next_directory, stored_config

        found = plugins_of(ctx)
    # Options are laid over the run's own settings; plugins or a file say all of them anew.
    whole = config is not None or plugin
    stored = stored_config(out) if resume and out and not whole else None
    if resume and stored is None and not (whole or assignments):
        raise UsageError(
            f"--resume --out {out}: no run there to go on with (it has no config.toml); is that "
            "its name? With a plugin, a file or --set a run starts where there is none yet"
        )
    resolved = _resolve(found, config, plugin, assignments, seed, device, stored)
    location = out or next_directory(resolved.method)
    if not _speaks():
        if not dry_run:
            api.execute(found, resolved, location, resume, SilentDisplay())
        return
    _print_notes(resolved)
    if dry_run:
        click.echo(json.dumps(api.try_step(resolved), indent=2))
        return
    click.echo(f"run: {location}", err=as_json)
    display = SilentDisplay() if as_json else make_display()
    summary = api.execute(found, resolved, location, resume, display)
    if as_json:
        click.echo(json.dumps(without_nan(summary), indent=2, allow_nan=False))
    else:
        _print_summary(summary, location)


@main.command("config")
@_configuration
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def config_(
    ctx: click.Context,
    config: str | None,
    plugin: tuple[str, ...],
    assignments: tuple[str, ...],
    seed: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Show the whole configuration, each value with its origin."""
    resolved = _resolve(plugins_of(ctx), config, plugin, assignments, seed, device, None)
    _print_notes(resolved)
    if as_json:
        click.echo(json.dumps({"config": resolved.tree, "origins": resolved.origins}, indent=2))
        return
    import tomli_w

    from mtlcore.config import annotated

    click.echo(annotated(tomli_w.dumps(dict(resolved.tree)), resolved.origins))


for command in (
    *cli_adapt.COMMANDS,
    *cli_answers.COMMANDS,
    *cli_inspect.COMMANDS,
    *cli_new_plugin.COMMANDS,
    *cli_report.COMMANDS,
    *cli_trained.COMMANDS,
):
    main.add_command(command)


def _resolve(
    plugins: Plugins,
    config: str | None,
    selected: Sequence[str],
    assignments: Sequence[str],
    seed: int | None,
    device: str | None,
    stored: Any,
) -> RunConfig:
    from mtlcore.config import resolve
    from mtlcore.layers import Layer, file_layer, set_layer

    layers = [Layer("the run", stored)] if stored else []
    if config is not None:
        layers.append(file_layer(config))
    layers.append(set_layer(assignments))
    options = {"seed": seed, "device": device}
    layers.append(Layer("options", {k: v for k, v in options.items() if v is not None}))
    return resolve(plugins, selected, layers)


def _print_notes(config: RunConfig) -> None:
    for note in config.notes:
        click.echo(f"note: {note}", err=True)


def _print_summary(summary: dict[str, Any], location: str) -> None:
    import rich.console

    from mtlcore.report.results import result_table

    rich.console.Console().print(result_table(summary))
    click.echo(f"pictures and curves: {location}/report")
