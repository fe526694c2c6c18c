"""The table of results in a terminal and in a file."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from mtlcore.report import result_table


def format_result(summary: dict[str, Any], width: int) -> str:
    """The table as a file or a pipe receives it."""
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None, force_terminal=False)
    console.print(result_table(summary))
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").split("\n")) + "\n"


def summary() -> dict[str, Any]:
    return {
        "final": {
            "val": {
                "segmentation": {"miou": 0.51234, "loss": 0.7},
                "depth": {"abs_error": 0.31, "rel_error": 0.12},
                "edges": {"f1": None},
            }
        },
        "final_split": "val",
        "averaged_over": 3,
        "best": {"epoch": 7, "chosen_on": "val", "val": {}},
        "constants": {
            "global": {"segmentation": {"miou": 0.03}, "depth": {"abs_error": 0.9}},
            "pixel": {"depth": {"abs_error": 0.25, "rel_error": 0.2}},
        },
        "higher_is_better": {
            "segmentation": {"miou": True, "loss": False},
            "depth": {"abs_error": False, "rel_error": False},
            "edges": {"f1": True},
        },
        "units": {"depth": "m"},
        "parameters": {"total": 1234567},
        "seconds": 3723.4,
        "skipped_steps": 2,
    }


def row(text: str, figure: str) -> list[str]:
    return next(words for words in map(str.split, text.splitlines()) if figure in words)


def test_the_table_holds_the_figures() -> None:
    text = format_result(summary(), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert row(text, "miou") == ["segmentation", "miou", "↑", "*", "0.5123", "0.03000", "-"]
    assert row(text, "abs_error") == [
        "depth",
        "(m)",
        "abs_error",
        "↓",
        "0.3100",
        "0.9000",
        "0.2500",
    ]
    assert row(text, "rel_error") == ["rel_error", "↓", "*", "0.1200", "-", "0.2000"]
    assert row(text, "loss") == ["loss", "↓", "0.7000", "-", "-"]
    assert row(text, "f1") == ["edges", "f1", "↑", "n/a", "-", "-"]


def test_the_notes_say_what_the_figures_are() -> None:
    text = format_result(summary(), 80)
    for note in (
        "* better than the best constants",
        "n/a: nothing to measure",
        "final metrics: mean of the last 3 evaluations on val",
        "best epoch: 7, chosen on val",
        "parameters: 1,234,567",
        "time: 1:02:03",
        "skipped steps: 2",
    ):
        assert note in text
    assert "\x1b" not in text


def test_notes_that_say_nothing_are_left_out() -> None:
    bare = summary() | {
        "final": {"test": {"depth": {"abs_error": 0.3}}},
        "final_split": "test",
        "averaged_over": 1,
        "constants": {},
        "skipped_steps": 0,
    }
    text = format_result(bare, 80)
    assert "final metrics: the last evaluation on test" in text
    for note in ("n/a", "skipped", "*"):
        assert note not in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (1234.0, "1234"), (2e-5, "2.000e-05"), (-12.345, "-12.35"), (math.inf, "inf")],
)
def test_figures_have_sensible_digits(value: float, shown: str) -> None:
    changed = summary()
    changed["final"]["val"] = {"edges": {"f1": value}}
    assert shown in row(format_result(changed, 80), "f1")


def test_nan_beats_nothing_and_nothing_is_no_rival() -> None:
    changed = summary()
    changed["final"]["val"] = {"edges": {"f1": math.nan}, "depth": {"rel_error": 0.1}}
    changed["constants"] = {
        "global": {"edges": {"f1": 0.1}, "depth": {"rel_error": None}},
        "pixel": {},
    }
    text = format_result(changed, 80)
    assert "*" not in text
    assert row(text, "f1") == ["edges", "f1", "↑", "n/a", "0.1000", "-"]
    assert row(text, "rel_error")[-2:] == ["n/a", "-"]


def test_on_a_terminal_good_figures_are_green() -> None:
    from io import StringIO

    from rich.console import Console

    stream = StringIO()
    console = Console(
        file=stream, force_terminal=True, color_system="standard", width=80, _environ={}
    )
    console.print(result_table(summary()))
    green = [text for text in stream.getvalue().split("\x1b[") if text.startswith("1;32m")]
    assert [text.removeprefix("1;32m") for text in green] == ["* 0.5123", "* 0.1200"]
