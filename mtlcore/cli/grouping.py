"""The command that chooses which tasks are trained together: `mtl groups`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlcore.cli.components import TRUST, plugins_of
from mtlcore.errors import UsageError
from mtlcore.system import stop_at_once

if TYPE_CHECKING:
    from mtlcore.results import RunResult


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--by",
    metavar="NAME",
    default="affinity",
    show_default=True,
    help="rsa, transfer, or what runs recorded of pairs, such as affinity or cosine.",
)
@click.option(
    "--budget", type=click.IntRange(min=1), default=2, show_default=True,
    help="The largest number of networks.",
)  # fmt: skip
@click.option(
    "--check", multiple=True, metavar="RUN",
    help="Compare with runs of groups and of single tasks: a run or a study. Repeatable.",
)  # fmt: skip
@click.option("--out", metavar="DIR", help="Write the table, its picture and the study here.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@TRUST
@click.pass_context
def groups(
    ctx: click.Context,
    runs: tuple[str, ...],
    by: str,
    budget: int,
    check: tuple[str, ...],
    out: str | None,
    as_json: bool,
    trust: bool,
) -> None:
    """Choose which tasks are trained together.

    RUN is the directory of a finished run or of a study. The table of how tasks relate comes from
    what runs of all tasks recorded, from networks of single tasks (rsa), or from runs of single
    tasks and of pairs (transfer). Of all ways to make groups the best is found; --out gets the
    study that trains it.
    """
    with stop_at_once():
        from mtlcore.grouping import (
            Missing,
            as_data,
            as_text,
            best_grouping,
            check_relations,
            finished_runs,
            recorded_relations,
            representation_similarities,
            transfer_gains,
            write_grouping,
        )
        from mtlcore.storage import without_nan
    found = finished_runs(runs)
    largest = max(found, key=lambda run: len(run.tasks))
    if by == "rsa":
        relations = representation_similarities(plugins_of(ctx, trust), found)
    elif by == "transfer":
        try:
            relations = transfer_gains(found)
        except Missing as missing:
            raise UsageError(_what_to_train(missing.groups, out, largest)) from None
    else:
        relations = recorded_relations(found, by)
    grouping = best_grouping(relations, budget)
    checked = None
    if check:
        checked = check_relations(relations, grouping, budget, finished_runs(check))
    if as_json:
        data = without_nan(as_data(relations, grouping, checked))
        click.echo(json.dumps(data, indent=2, allow_nan=False))
    else:
        click.echo(as_text(relations, grouping, checked))
    if out is not None:
        study = write_grouping(Path(out), relations, grouping, largest, checked)
        if not as_json:
            click.echo(
                f"\nwritten: {out}/relations.md, relations.svg, and {study}, which trains the "
                f"groups beside single tasks and all together:\n"
                f"mtl study {study} --out {out}/study"
            )


def _what_to_train(missing: Sequence[Sequence[str]], out: str | None, run: RunResult) -> str:
    """Return which runs a table of transfer gains lacks, and how to get them."""
    from mtlcore.grouping import write_pairs

    lacking = "; ".join(", ".join(group) for group in missing)
    told = f"--by transfer: there is no finished run of: {lacking}"
    if out is None:
        return f"{told}. With --out DIR, the study that trains them is written there"
    study = write_pairs(Path(out), run)
    return (
        f"{told}. They are in {study}: mtl study {study} --out {out}/pairs, and then mtl groups "
        f"{out}/pairs --by transfer"
    )


COMMANDS = [groups]
