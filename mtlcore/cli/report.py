"""The command that makes a page of a run or a study: ``mtl report``."""

from __future__ import annotations

import click

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.system import stop_at_once


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="RUN|STUDY")
@click.option("--out", help="The file to write; default: index.html in the study, or RUN/report.")
def report(places: tuple[str, ...], out: str | None) -> None:
    """Write one page, which needs no network, about a RUN, a STUDY, or several runs compared."""
    with stop_at_once():
        from mtlcore.report import default_place, make_report
    if len(places) > 1 and out is None:
        raise UsageError("--out FILE: say where the page of several runs is to be written")
    text = make_report(places)
    target = out or default_place(places[0])
    _write(target, text)
    click.echo(f"report: {target}")


def _write(place: str, text: str) -> None:
    from pathlib import Path

    import fsspec

    from mtlcore.storage import written_whole

    try:
        if "://" in place:
            with fsspec.open(place, "w", encoding="utf-8") as file:
                file.write(text)
        else:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            with written_whole(Path(place)) as partial:
                partial.write_text(text, "utf-8")
    except (OSError, ValueError, ImportError) as error:
        raise MtlError(f"{place}: cannot be written ({describe(error)})") from error


COMMANDS = [report]
