"""The commands about data: `mtl data check`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from mtlcore.cli.components import TRUST, plugins_of
from mtlcore.errors import UsageError
from mtlcore.system import stop_at_once

if TYPE_CHECKING:
    from mtlcore.datacheck import DataCheck, Finding

_PAGE = "data-check.html"
_FILES = 5  # of each finding, in the terminal; the page has more


@click.group("data")
def data() -> None:
    """Look at data before learning from it."""


@data.command()
@click.argument("place", required=False, metavar="[FOLDER|SPEC|CONFIG|RUN]", type=click.Path())
@click.option(
    "--plugin",
    "plugin",
    multiple=True,
    metavar="NAME",
    help="A plugin, a method or a plugin file (.py), as of mtl run. Repeatable.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override one value of the configuration. Repeatable.",
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="NAME",
    help="A split to read. Repeatable.  [default: all]",
)
@click.option("--out", metavar="FILE", default=_PAGE, show_default=True, help="The page to write.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@TRUST
@click.pass_context
def check(
    ctx: click.Context,
    place: str | None,
    plugin: tuple[str, ...],
    assignments: tuple[str, ...],
    splits: tuple[str, ...],
    out: str,
    as_json: bool,
    trust: bool,
) -> None:
    """Read every sample once and write a page about what is there.

    What is checked is a folder with a dataset.toml, such a description, a configuration as of mtl
    run, a run's directory, or what --plugin and --set name. The exit code is 0 where nothing is
    wrong and 1 where something is.
    """
    with stop_at_once():
        from mtlcore.config import resolve_data, set_layer
        from mtlcore.datacheck import as_json as json_of
        from mtlcore.datacheck import check_data, layer_of
        from mtlcore.display import CountingDisplay
        from mtlcore.report import data_page
        from mtlcore.storage import without_nan, write_output

        plugins = plugins_of(ctx, trust)
    if place is None and not plugin and not assignments:
        raise UsageError(
            "name what is to be checked: a folder with a dataset.toml, a configuration, or "
            "--set data.name=NAME (mtl data check --help)"
        )
    layers = [*([] if place is None else [layer_of(place)]), set_layer(assignments)]
    chosen = resolve_data(plugins, plugin, layers)
    named = chosen.origins.get("data.workers") not in (None, "core")
    found = check_data(chosen, CountingDisplay(), splits, chosen.data.workers if named else None)
    write_output(out, data_page(found).encode())
    if as_json:
        click.echo(json.dumps(without_nan(json_of(found)), indent=2, allow_nan=False))
    else:
        _tell(found)
        click.echo(f"page: {out}")
    ctx.exit(1 if found.wrong else 0)


def _tell(check: DataCheck) -> None:
    import rich.console

    from mtlcore.report import data_tables

    console = rich.console.Console()
    for table in data_tables(check):
        console.print(table)
        console.print()
    for note in check.notes:
        click.echo(f"note: {note}")
    for level, title in (("wrong", "wrong"), ("odd", "odd, and perhaps meant")):
        findings = [finding for finding in check.findings if finding.level == level]
        if findings:
            click.echo(f"{title}:")
        for finding in findings:
            for line in _lines(finding):
                click.echo(line)
    wrong = sum(finding.level == "wrong" for finding in check.findings)
    click.echo(f"{wrong} thing(s) wrong" if wrong else "nothing wrong was found")


def _lines(finding: Finding) -> Iterator[str]:
    where = finding.split + (f", {finding.task}" if finding.task else "")
    number = f" ({finding.samples})" if finding.samples else ""
    yield f"  {where}: {finding.text}{number}"
    for example in finding.files[:_FILES]:
        yield "      " + example.told()
    more = finding.samples - len(finding.files[:_FILES])
    if finding.files and more > 0:
        yield f"      and {more} more"


COMMANDS: Sequence[click.Command] = [data]
