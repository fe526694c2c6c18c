"""The command that writes a trained run as a program: `mtl export`."""

from __future__ import annotations

import json
from typing import Any

import click

from mtlcore.cli.components import TRUST, plugins_of
from mtlcore.system import stop_at_once


@click.command()
@click.argument("run")
@click.option(
    "--to", "exporter", required=True, metavar="FORMAT",
    help="The format, one of mtl list exporters.",
)  # fmt: skip
@click.option("--out", required=True, metavar="FILE", help="File or URL to write the program to.")
@click.option("--tasks", metavar="A,B", help="The tasks to predict.  [default: all of the run]")
@click.option(
    "--plugin", "files", multiple=True, metavar="FILE", type=click.Path(),
    help="A plugin file (.py): of the exporter or the run's own. Repeatable.",
)  # fmt: skip
@click.option(
    "--set", "assignments", multiple=True, metavar="PATH=VALUE",
    help="Override one value of [data], such as data.root. Repeatable.",
)  # fmt: skip
@click.option(
    "--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True,
    help="Use the weights of the best epoch or the last ones.",
)  # fmt: skip
@TRUST
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_context
def export(
    ctx: click.Context,
    run: str,
    exporter: str,
    out: str,
    tasks: str | None,
    files: tuple[str, ...],
    assignments: tuple[str, ...],
    checkpoint: Any,
    trust: bool,
    as_json: bool,
) -> None:
    """Write a trained RUN as one program that needs no mtlcore.

    It takes raw images and returns final values of each task. The file is written only if it
    computes what the model predicts for samples of the run's dataset.
    """
    with stop_at_once():
        from mtlcore.config import Layer, set_layer
        from mtlcore.runs import export_run, load_run

        plugins = plugins_of(ctx, trust)
    changes = [Layer("--plugin", {"plugins": list(files)}), set_layer(assignments)]
    trained = load_run(plugins, run, checkpoint, changes, "cpu")
    wanted = None if tasks is None else [name.strip() for name in tasks.split(",") if name.strip()]
    done = export_run(trained, plugins.get("exporters", exporter), out, wanted)
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    for axis, reason in done.fixed.items():
        click.echo(f"note: {axis} is fixed, the program takes no other ({reason})", err=True)
    if as_json:
        click.echo(json.dumps(json.loads(done.description), indent=2))
        return
    click.echo(f"{done.place} computes what the model predicts, on {done.compared} samples")
    for what, infos in (("in", done.inputs), ("out", done.outputs)):
        for info in infos:
            shape = ", ".join(map(str, info.shape))
            click.echo(f"  {what:<4}{info.name:<16} {info.dtype:<8} ({shape})")
    for axis, length in done.least.items():
        if length > 1 or axis in done.most:
            most = f", at most {done.most[axis]}" if axis in done.most else ""
            click.echo(f"  {axis} is at least {length}{most}")


COMMANDS = [export]
