"""The commands that turn runs into answers: `mtl study` and `mtl compare`."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import click

from mtlcore.cli.components import TRUST, plugins_of
from mtlcore.system import stop_at_once


@click.command("study")
@click.argument("study", type=click.Path())
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    help="Directory of the study. An unfinished one is resumed.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of runs at a time.",
)
@click.option("--launcher", metavar="NAME", help="What starts the runs: one of mtl list launchers.")
@click.option(
    "--prepare", is_flag=True, help="Write the cells and print their directories, but run none."
)
@TRUST
@click.pass_context
def study_(
    ctx: click.Context,
    study: str,
    out: str,
    jobs: int,
    launcher: str | None,
    prepare: bool,
    trust: bool,
) -> None:
    """Run a study and print its tables.

    STUDY is a TOML file that lists variants and seeds.
    """
    with stop_at_once():
        from mtlcore.display import StudyDisplay
        from mtlcore.results import as_markdown
        from mtlcore.studies import prepare_study, run_study

        blocked = ctx.obj.get("block", ()) if isinstance(ctx.obj, dict) else ()
        plugins = plugins_of(ctx, trust)
    if prepare:
        # Notes go elsewhere: the directories are for a program to read.
        note = partial(click.echo, err=True)
        for location in prepare_study(plugins, study, out, jobs, note):
            click.echo(location)
        return
    comparison = run_study(plugins, study, out, jobs, StudyDisplay(), blocked, launcher)
    click.echo("\n" + as_markdown(comparison))
    click.echo(f"tables: {out}/table.md, table.csv, table.tex, results.json, values.json")
    if comparison.failures:
        ctx.exit(1)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--baseline", metavar="NAME", help="The variant to compare with.")
@click.option(
    "--delta-m",
    "definition",
    metavar="DEFINITION",
    help="Definition of delta-m: mtan, cagrad or libmtl.",
)
@click.option(
    "--epoch",
    type=click.Choice(["last", "best"]),
    help="Compare metrics of the last evaluations or of the best epoch.",
)
@click.option(
    "--target", "targets", multiple=True, metavar="TASK.METRIC=VALUE",
    help="Say when this value was first reached. Repeatable.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def compare(
    runs: tuple[str, ...],
    baseline: str | None,
    definition: str | None,
    epoch: Any,
    targets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare finished runs over their seeds.

    RUN is the directory of a run or of a study, or a file of kept results such as the values.json
    that a study leaves.
    """
    with stop_at_once():
        from mtlcore.results import Target, as_data, as_markdown
        from mtlcore.results import compare as compared
        from mtlcore.storage import without_nan
    comparison = compared(
        runs,
        baseline=baseline,
        definition=definition,
        epoch=epoch,
        targets=[Target.parse(target) for target in targets],
    )
    if as_json:
        data = without_nan(as_data(comparison))
        click.echo(json.dumps(data, indent=2, allow_nan=False))
    else:
        click.echo(as_markdown(comparison), nl=False)


COMMANDS = [study_, compare]
