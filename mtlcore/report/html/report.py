"""One page about a run, a study, or several runs compared."""

from __future__ import annotations

from collections.abc import Sequence

from mtlcore.report.html.runs import run_page
from mtlcore.report.html.studies import study_page
from mtlcore.results import STUDY, compare
from mtlcore.storage import read, read_files


def make_report(places: Sequence[str]) -> str:
    """The page, as the text of one HTML file that refers to no other.

    Args:
        places: directory or URL of one run, finished or not; of one study; or of finished runs.

    Raises:
        UsageError: neither a run nor a study is there, or one of several runs is not finished.
        MtlError: a file is damaged.
    """
    if len(places) > 1 or is_study(places[0]):
        return study_page(compare(places))
    return run_page(read_files(places[0]))


def is_study(place: str) -> bool:
    """Whether a study is there."""
    return read(f"{place.rstrip('/')}/{STUDY}") is not None


def default_place(place: str) -> str:
    """Where the page of a run or a study belongs."""
    folder = place.rstrip("/") if is_study(place) else f"{place.rstrip('/')}/report"
    return f"{folder}/index.html"
