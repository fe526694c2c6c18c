"""The command that converts published label splits: `mtl labels`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("source", type=click.Path())
@click.option(
    "--tasks",
    default="",
    metavar="A,B,C",
    help="The tasks of a matrix's columns in order, or the keys to keep.",
)
@click.option("--out", required=True, metavar="FILE", help="The JSON file to write.")
def labels(source: str, tasks: str, out: str) -> None:
    """Convert a published label split for data.labels.

    SOURCE is a file of the kind .npy, .pth or .txt.
    """
    from mtlcore.loading import convert
    from mtlcore.storage import write_output

    labelled = convert(Path(source), [task.strip() for task in tasks.split(",") if task.strip()])
    write_output(out, f"{json.dumps(labelled)}\n".encode())
    for task, samples in labelled.items():
        click.echo(f"{task}: {len(samples)} samples")


COMMANDS = [labels]
