"""Parts of a study: why a cell ended, the time left, what is displayed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mtlcore.display import Outlook, StudyDisplay
from mtlcore.launchers import CellExit


def ended(code: int, said: str) -> str:
    return CellExit(location="cells/a", code=code, seconds=1.0, output=said).reason


def test_why_a_process_ended() -> None:
    assert ended(1, "epoch 1\nmtl: the disk is\n  full\n\n") == "the disk is full"
    assert ended(1, "mtl: an older one\nmtl: the last one") == "the last one"
    assert ended(1, "Traceback ...\n  line\nValueError: bad") == "ValueError: bad"
    assert ended(-9, "epoch 1").startswith("killed by SIGKILL")
    assert ended(-15, "") == "killed by SIGTERM"
    assert "status 3" in ended(3, "\n")


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_the_time_left_counts_what_waits_and_what_runs() -> None:
    now = Clock()
    outlook = Outlook(["slow", "quick", "slow", "quick"], 1, 2, now)
    assert outlook.seconds_left is None
    outlook.started("slow, seed 0", "slow")
    outlook.started("quick, seed 0", "quick")
    now.time = 10
    outlook.ended("quick, seed 0")
    outlook.took("quick", 10)
    # One of each waits, one slow one runs and is expected now: nothing is known of slow ones.
    assert outlook.seconds_left == pytest.approx((10 + 10 + 0) / 2)
    outlook.took("slow", 40)
    assert outlook.seconds_left == pytest.approx((40 + 10 + 30) / 2)
    outlook.started("slow, seed 1", "slow")
    outlook.started("quick, seed 1", "quick")
    now.time = 20
    # The longest of the running ones decides.
    assert outlook.seconds_left == pytest.approx(30)
    assert (outlook.done, outlook.total, outlook.elapsed) == (2, 5, 20)


def test_a_suspended_cell_does_not_spoil_the_time_left() -> None:
    outlook = Outlook(["equal", "equal"], 3, 1, Clock())
    for seconds in (30, 3600, 31):
        outlook.took("equal", seconds)
    assert outlook.seconds_left == pytest.approx(2 * 31)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    for name, value in {"TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    yield Terminal()


def test_a_terminal_has_a_bar(terminal: Terminal) -> None:
    now = Clock()
    outlook = Outlook(["equal", "equal"], 1, 2, now)
    display = StudyDisplay(terminal)
    with display:
        display.start("Tiny", outlook)
        outlook.started("equal, seed 0", "equal")
        outlook.took("equal", 90)
        now.time = 30
    text = terminal.getvalue()
    for part in ("Tiny: 3 cells, 1 of them done before", "1/3 cells", "equal, seed 0 (0:00:30)",
                 "left 0:01:15"):  # fmt: skip
        assert part in text
    assert text.endswith("\x1b[?25h") or "\x1b[?25h" in text, "the cursor is shown again"


def test_a_file_has_no_control_characters() -> None:
    stream = io.StringIO()
    outlook = Outlook(["equal"], 0, 1, Clock())
    with StudyDisplay(stream) as display:
        display.start("Tiny", outlook)
        outlook.started("equal, seed 0", "equal")
        outlook.ended("equal, seed 0")
        display.ended("equal, seed 0: finished in 0:00:09")
    assert stream.getvalue() == (
        "Tiny: 1 cells\n1/1  equal, seed 0: finished in 0:00:09  left -:--:--\n"
    )


def test_a_cell_ends_with_its_study() -> None:
    """Also before the run has handlers of its own: closing the pipe is enough."""
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [sys.executable, "-m", "mtlcore.cli.study_cell", "run", "--out", os.devnull],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait() != 0


def test_the_answers_are_light() -> None:
    code = "import sys, mtlcore.cli.studies; print(*sys.modules)"
    found: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not {"torch", "numpy", "rich", "cattrs", "fsspec"} & set(found.stdout.split())
