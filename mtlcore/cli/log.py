"""The command that sends runs to a logger after their end: `mtl log`."""

from __future__ import annotations

import click

from mtlcore.cli.components import FILES, TRUST, with_files
from mtlcore.errors import UsageError
from mtlcore.system import stop_at_once


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="RUN|STUDY...")
@click.option(
    "--to", "name", required=True, metavar="NAME", help="The logger: one of mtl list loggers."
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="SETTING=VALUE",
    help="A setting of the logger. Repeatable.",
)
@FILES
@TRUST
@click.pass_context
def log(
    ctx: click.Context,
    places: tuple[str, ...],
    name: str,
    assignments: tuple[str, ...],
    files: tuple[str, ...],
    trust: bool,
) -> None:
    """Send runs to a logger after their end.

    All that a run recorded is told: its values, configuration, results and pictures. What the
    logger has of the run already is replaced or completed. Of a study, all cells that have begun
    are sent.
    """
    with stop_at_once():
        from mtlcore.config import set_layer
        from mtlcore.runs import log_run
    plugins = with_files(ctx, files)
    if trust:
        plugins.trust_runs()
    given = set_layer(assignments).values
    for place in _runs(places):
        lines = log_run(plugins, place, name, given)
        click.echo(f"{place}: {lines} lines sent to {name}")


def _runs(places: tuple[str, ...]) -> list[str]:
    """Return the runs at these places; of a study, its cells that have begun.

    Raises:
        UsageError: No cell of a study has.
    """
    from mtlcore.storage import RunFiles, stored_study

    runs = []
    for place in places:
        study = stored_study(place)
        if study is None:
            runs.append(place)
            continue
        begun = [c.location for c in study.cells if RunFiles(c.location).provenance]
        if not begun:
            raise UsageError(f"{place}: no run of this study has begun")
        runs += begun
    return runs


COMMANDS = [log]
