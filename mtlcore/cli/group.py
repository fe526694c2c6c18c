"""The `mtl` command. Light until a command runs: nothing here imports torch at the top."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from mtlcore._version import __version__
from mtlcore.cli import (
    adapt,
    components,
    doctor,
    evaluation,
    labels,
    new_plugin,
    report,
    run,
    studies,
)
from mtlcore.errors import Interrupted, MtlError, Pruned
from mtlcore.system import is_main_process, stop_by_exception


class _Group(click.Group):
    """Turns mtlcore's errors into messages: no traceback unless --traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with stop_by_exception(), _warnings_as_notes():
                return super().invoke(ctx)
        except MtlError as error:
            if ctx.params.get("traceback"):
                raise
            # Processes that train together are all stopped alike: one of them says so.
            if is_main_process() or not isinstance(error, Interrupted | Pruned):
                click.echo(f"mtl: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("mtl: stopped", err=True)
            sys.exit(Interrupted.exit_code)
        except BrokenPipeError:
            # The reader (`mtl list | head`) has what it wanted; not all was written all the same.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Show warnings of the core or of a plugin as notes, without a place in the code."""
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
@click.option(
    "--no-plugin", "block", multiple=True, metavar="ID", help="Do not load this plugin. Repeatable."
)
@click.option("--strict-plugins", is_flag=True, help="Fail if any plugin fails to load.")
@click.option("--traceback", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, block: tuple[str, ...], strict_plugins: bool, traceback: bool) -> None:
    """Train and evaluate multi-task models."""
    if ctx.obj is None:
        ctx.obj = {"block": block, "strict": strict_plugins}


_MODULES = (run, adapt, evaluation, studies, report, components, labels, new_plugin, doctor)
for module in _MODULES:
    for command in module.COMMANDS:
        main.add_command(command)
