"""The command by which trained runs label photographs: `mtl pseudo-label`."""

from __future__ import annotations

from typing import Any

import click

from mtlcore.cli.components import TRUST, plugins_of
from mtlcore.errors import UsageError
from mtlcore.system import stop_at_once


@click.command("pseudo-label")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--data", required=True, metavar="DIR", help="Folder or URL with the photographs.")
@click.option(
    "--out", required=True, metavar="DIR", help="Folder or URL to write photographs and labels to."
)
@click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True,
    help="Leave pixels unlabelled whose most probable class is less probable.",
)  # fmt: skip
@click.option(
    "--split", default="train", show_default=True, metavar="NAME",
    help="The split that the photographs are to be of.",
)  # fmt: skip
@click.option(
    "--checkpoint", type=click.Choice(["best", "last"]), default="best", show_default=True,
    help="Use the weights of the best epoch or the last ones.",
)  # fmt: skip
@click.option(
    "--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:1.  [default: each run's]"
)
@TRUST
@click.pass_context
def label_photographs(
    ctx: click.Context,
    runs: tuple[str, ...],
    data: str,
    out: str,
    threshold: float,
    split: str,
    checkpoint: Any,
    device: str | None,
    trust: bool,
) -> None:
    """Label photographs by what trained RUNs predict.

    Each run labels its own tasks. The result is a dataset that data.name=folder reads.
    """
    with stop_at_once():
        from mtlcore.runs import load_run, pseudo_label

        plugins = plugins_of(ctx, trust)
    if not split or {*split} & {*"/\\{}"} or split.startswith("."):
        raise UsageError(f"--split {split}: names a folder; write a word such as train")
    teachers = {
        run: load_run(plugins, run, checkpoint, device=device) for run in dict.fromkeys(runs)
    }
    done = pseudo_label(teachers, data, out, split=split, threshold=threshold)
    for task in done.left_out:
        click.echo(f"note: {task} has no value per pixel and is not labelled", err=True)
    click.echo(f"{done.photographs} photographs in {out}")
    for task, run in done.labelled_by.items():
        kept = f", {done.kept[task]:.0%} of the pixels" if task in done.kept else ""
        click.echo(f"  {task:<16} by {run}{kept}")


COMMANDS = [label_photographs]
