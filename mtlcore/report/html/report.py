"""One page about a run, a study, or several runs compared."""

from __future__ import annotations

from collections.abc import Sequence

from mtlcore.report.html.run_page import run_page
from mtlcore.report.html.study_page import study_page
from mtlcore.results import compare
from mtlcore.storage import open_run, place_inside, stored_study


def make_report(places: Sequence[str]) -> str:
    """Return the page as the text of one HTML file that refers to no other.

    Args:
        places: Directory or URL of one run, finished or not; of one study; or of finished runs.

    Raises:
        UsageError: Neither a run nor a study is there, or one of several runs is not finished.
        MtlError: A file is damaged.
    """
    if len(places) > 1 or stored_study(places[0]) is not None:
        return study_page(compare(places))
    return run_page(open_run(places[0]))


def default_place(place: str) -> str:
    """Return where the page of a run or a study belongs.

    Raises:
        MtlError: A symbolic link leads out of its directory there.
    """
    return place_inside(place, "index.html" if stored_study(place) else "report/index.html")
