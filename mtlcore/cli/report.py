"""The command that makes a page of a run or a study: `mtl report`."""

from __future__ import annotations

import click

from mtlcore.errors import UsageError
from mtlcore.system import stop_at_once


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="RUN|STUDY...")
@click.option(
    "--out",
    metavar="FILE",
    help="The file to write.  [default: RUN/report/index.html or STUDY/index.html]",
)
def report(places: tuple[str, ...], out: str | None) -> None:
    """Write an HTML page about runs or a study.

    Several runs are compared with each other. The page is one file, which needs no network.
    """
    with stop_at_once():
        from mtlcore.report import default_place, make_report
        from mtlcore.storage import write_output
    if len(places) > 1 and out is None:
        raise UsageError("--out FILE: say where the page of several runs is to be written")
    text = make_report(places)
    target = out or default_place(places[0])
    write_output(target, text.encode())
    click.echo(f"report: {target}")


COMMANDS = [report]
