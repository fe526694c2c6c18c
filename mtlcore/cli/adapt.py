"""The command that adds new tasks to a trained run: `mtl adapt`."""

from __future__ import annotations

import json
from typing import Any

import click

from mtlcore.cli.components import TRUST, plugins_of
from mtlcore.cli.descriptions import table
from mtlcore.system import is_main_process, stop_at_once

_HEADINGS = ("task", "metric", "before", "final", "target", "epoch", "seconds")
_SCRATCH = ("scratch: final", "epoch", "seconds")


@click.command()
@click.argument("run")
@click.argument("more", nargs=-1, metavar="[TASK]...")
@click.option(
    "--tasks",
    multiple=True,
    required=True,
    metavar="NEW...",
    help="The new tasks, as a,b or as several words. Repeatable.",
)
@click.option(
    "--train",
    type=click.Choice(["all", "new", "heads"]),
    default="all",
    show_default=True,
    help="Which tasks to train: all; the new ones, through the whole network (new); or the new "
    "ones, through the parts that are theirs alone, with everything else frozen (heads).",
)
@click.option(
    "--data-fraction",
    type=float,
    metavar="SHARE",
    help="Same as --set data.train_fraction=SHARE: the share of the training samples to use, "
    "such as 0.1.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override one value of the run's configuration. Repeatable.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="TASK.METRIC=VALUE",
    help="A metric's value to reach. Repeatable.  [default, with --from-scratch: the final value "
    "from scratch]",
)
@click.option(
    "--checkpoint",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Start from the weights of the best epoch or the last ones.",
)
@click.option(
    "--from-scratch",
    "scratch",
    is_flag=True,
    help="Train the same from random weights too, in OUT/scratch, and compare.",
)
@click.option("--out", required=True, metavar="DIR", help="Directory or URL of the new run.")
@click.option("--resume", is_flag=True, help="Resume the run in --out.")
@TRUST
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, and no progress.")
@click.pass_context
def adapt(
    ctx: click.Context,
    run: str,
    more: tuple[str, ...],
    tasks: tuple[str, ...],
    train: Any,
    data_fraction: float | None,
    assignments: tuple[str, ...],
    targets: tuple[str, ...],
    checkpoint: Any,
    scratch: bool,
    out: str,
    resume: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Add new tasks to a trained RUN.

    The result is a new run; RUN itself stays as it is.
    """
    with stop_at_once():
        from mtlcore.config import set_layer
        from mtlcore.display import SilentDisplay, make_display
        from mtlcore.runs import ADAPTATION, adapt_run, adapted_config

        plugins = plugins_of(ctx, trust)
    new = [name.strip() for word in (*tasks, *more) for name in word.split(",") if name.strip()]
    config = adapted_config(
        plugins,
        run,
        new,
        train=train,
        checkpoint=checkpoint,
        fraction=data_fraction,
        changes=set_layer(assignments),
    )
    is_main = is_main_process()
    for note in config.notes if is_main else ():
        click.echo(f"note: {note}", err=True)
    display = make_display() if is_main and not as_json else SilentDisplay()
    report = adapt_run(
        plugins, config, out, display, scratch=scratch, targets=targets, resume=resume
    )
    if not is_main:
        return
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for line in table(_rows(report)):
        click.echo(line)
    click.echo(f"pictures and curves: {out}/report; these values: {out}/{ADAPTATION}")


def _rows(report: dict[str, Any]) -> list[list[str]]:
    compared = report["seconds"]["scratch"] is not None
    rows = [[*_HEADINGS, *(_SCRATCH if compared else ())]]
    for row in report["rows"]:
        adapted, scratch = row["adapted"], row["scratch"]
        name = row["task"] + (" (new)" if row["new"] else "")
        has_target = row["target"] is not None
        cells = [name, row["metric"], _value(row["before"]), _value(adapted["final"])]
        cells += [_value(row["target"]), *_when(adapted, has_target)]
        if compared:
            cells += (
                [_value(scratch["final"]), *_when(scratch, has_target)] if scratch else ["-"] * 3
            )
        rows.append(cells)
    return rows


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _when(result: dict[str, Any], has_target: bool) -> list[str]:
    """Return the epoch and the seconds at which the target was reached."""
    if result["epoch"] is None:
        return ["not reached", "-"] if has_target else ["-", "-"]
    return [str(result["epoch"]), f"{result['seconds']:.1f}"]


COMMANDS = [adapt]
