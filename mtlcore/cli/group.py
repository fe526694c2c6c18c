"""The `mtl` command. Light until a command runs: nothing here imports torch at the top."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from mtlcore._version import __version__
from mtlcore.cli import (
    adapt,
    components,
    data,
    doctor,
    evaluation,
    export,
    grouping,
    labels,
    log,
    new_plugin,
    pseudo_labels,
    report,
    run,
    studies,
)
from mtlcore.errors import Interrupted, MtlError, Pruned, UsageError, describe, exit_told
from mtlcore.system import is_main_process, out_of_memory, prepare_streams, stop_by_exception


class _Group(click.Group):
    """Turns errors into messages: no traceback unless --traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        prepare_streams()
        try:
            with stop_by_exception(), _warnings_as_notes():
                _check_folder()
                result = super().invoke(ctx)
                # Here, where an error can still be told.
                sys.stdout.flush()
                return result
        except click.ClickException:
            raise
        except MtlError as error:
            if ctx.params.get("traceback"):
                raise
            # Processes that train together are all stopped alike: one of them says so.
            if not isinstance(error, Interrupted | Pruned) or is_main_process():
                click.echo(f"mtl: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("mtl: stopped", err=True)
            sys.exit(Interrupted.exit_code)
        except BrokenPipeError:
            # The reader (`mtl list | head`) has what it wanted; not all was written all the same.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (Exception, SystemExit) as error:
            told = _told(error)
            if told is None or ctx.params.get("traceback"):
                raise
            click.echo(f"mtl: {told}", err=True)
            sys.exit(1)


# Of a full disk, a terminal that is gone, a closed stream.
_STREAM_ERRORS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EPIPE)


def _told(error: BaseException) -> str | None:
    """Return what to say of an error that may come from anywhere, None where it is a fault."""
    if isinstance(error, SystemExit):  # mtlcore's own commands raise others
        return exit_told(error)
    if memory := out_of_memory(error):
        return f"the memory of this machine does not suffice ({memory})"
    if isinstance(error, OSError) and error.filename is None and error.errno in _STREAM_ERRORS:
        # Who writes a file tells its name. What is left is a full disk, or a terminal that is gone.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"standard output cannot be written ({describe(error)})"
    if isinstance(error, OSError):
        return describe(error)
    return None


def _check_folder() -> None:
    """Refuse to work in a folder that is gone: paths mean nothing there.

    Raises:
        UsageError: The working directory was deleted.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            "the current folder was deleted or cannot be entered any more; change to another one"
        ) from error


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


_MODULES = (
    run,
    adapt,
    evaluation,
    export,
    pseudo_labels,
    studies,
    grouping,
    report,
    log,
    components,
    data,
    labels,
    new_plugin,
    doctor,
)
for module in _MODULES:
    for command in module.COMMANDS:
        main.add_command(command)
