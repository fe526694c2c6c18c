"""What is shown of a run, on a terminal and elsewhere."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from mtlcore.display import Display, SilentDisplay, clock, make_display
from mtlcore.display.run import Pace, PlainDisplay, TerminalDisplay, digits

LOSSES = {"segmentation": 1.234, "depth": 0.456}
FIGURES = {
    "segmentation": {"miou": 0.512, "pixel_accuracy": 0.8, "loss": 1.0},
    "depth": {"loss": 0.4, "abs_error": 0.31},
}
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(now: Callable[[], float], width: int = 80) -> tuple[TerminalDisplay, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, height=24, _environ={})
    return TerminalDisplay(console, now), stream


def visible(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


# Pace


def test_the_first_step_is_not_taken_for_the_speed() -> None:
    now = Clock()
    pace = Pace(now)
    pace.start(100, 0)
    assert pace.seconds_left is None
    now.time += 60
    pace.step(1)
    assert pace.seconds_left is None
    now.time += 0.5
    pace.step(2)
    assert pace.seconds_left == pytest.approx(49)
    assert pace.elapsed == pytest.approx(60.5)


def test_steps_of_an_earlier_process_are_not_counted() -> None:
    now = Clock()
    pace = Pace(now)
    pace.start(1000, 900)
    for step in range(901, 911):
        now.time += 2
        pace.step(step)
    assert pace.seconds_left == pytest.approx(180)


def test_one_slow_step_moves_the_estimate_little_and_a_new_speed_is_believed() -> None:
    now = Clock()
    pace = Pace(now)
    pace.start(1000, 0)
    for step in range(1, 201):
        now.time += 10 if step == 150 else 1
        pace.step(step)
    assert pace.seconds_left == pytest.approx(800, rel=0.1)
    for step in range(201, 801):
        now.time += 3
        pace.step(step)
    assert pace.seconds_left == pytest.approx(3 * 200, rel=0.1)


def test_an_even_speed_is_told_exactly_to_the_end() -> None:
    now = Clock()
    pace = Pace(now)
    pace.start(7, 0)
    for step in range(1, 8):
        now.time += 1.5
        pace.step(step)
        if step > 1:
            assert pace.seconds_left == pytest.approx(1.5 * (7 - step))


def test_numbers_for_people() -> None:
    assert [digits(value) for value in (0.512, 12.344, 1234.0, 2e-5)] == [
        "0.5120", "12.34", "1234", "2.000e-05",
    ]  # fmt: skip
    assert [clock(seconds) for seconds in (0.2, 130, 90000)] == [
        "0:00:00", "0:02:10", "1 day, 1:00:00",
    ]  # fmt: skip


# Losses


def recent(display) -> dict[str, float]:
    return dict(display._recent)


def test_recent_losses_follow_slowly_and_leave_out_what_is_not_finite() -> None:
    display = SilentDisplay()
    display.start(100, 0, "run")
    assert recent(display) == {}
    display.step(1, {"depth": 1.0})
    assert recent(display) == {"depth": 1.0}
    display.step(2, {"depth": math.nan, "normals": 0.5})
    display.step(3, {})
    assert recent(display) == {"depth": 1.0, "normals": 0.5}
    display.step(4, {"depth": 3.0})
    assert 1.0 < recent(display)["depth"] < 1.5
    for step in range(5, 100):
        display.step(step, {"depth": 3.0})
    assert recent(display)["depth"] == pytest.approx(3, abs=0.05)
    display.start(100, 0, "another run")
    assert recent(display) == {}


# Plain


def test_plain_is_one_line_per_epoch_without_control_characters() -> None:
    now, stream = Clock(), io.StringIO()
    with PlainDisplay(stream, now) as display:
        display.start(40, 0, "equal on rooms")
        for step in range(1, 41):
            now.time += 1
            display.step(step, LOSSES)
            if step % 10 == 0:
                figures = FIGURES if step == 40 else None
                display.epoch(step // 10, 4, recent(display), figures)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "equal on rooms"
    assert lines[1] == "epoch 1/4 | loss segmentation 1.234  depth 0.4560 | left 0:00:30"
    assert lines[4] == (
        "epoch 4/4 | loss segmentation 1.234  depth 0.4560 | "
        "evaluation segmentation miou 0.5120  depth abs_error 0.3100 | left 0:00:00"
    )
    assert len(lines) == 5
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stream.getvalue())


def test_plain_copes_with_no_speed_yet_and_nan() -> None:
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.start(10, 0, "run")
    display.epoch(1, 10, LOSSES, {"depth": {"abs_error": math.nan}})
    display.epoch(2, 10, {}, None)
    assert "abs_error nan | left -:--:--" in stream.getvalue()
    assert "left -:--:--" in stream.getvalue()


# Terminal


def test_the_bar_shows_progress_losses_and_the_time_left() -> None:
    now = Clock()
    display, stream = terminal(now)
    with display:
        display.start(400, 100, "equal on rooms")
        for step in range(101, 201):
            now.time += 2
            display.step(step, LOSSES)
        display.note("step 150: skipped")
    text = visible(stream)
    for part in ("equal on rooms", "50%", "200/400", "0:03:20", "left 0:06:40",
                 "segmentation 1.234", "depth 0.4560", "step 150: skipped"):  # fmt: skip
        assert part in text
    assert max(map(len, re.split(r"[\r\n]", text))) <= 80


@pytest.mark.parametrize("crash", [False, True])
def test_the_terminal_is_left_in_order(crash: bool) -> None:
    display, stream = terminal(Clock())
    try:
        with display:
            display.start(10, 0, "run")
            assert stream.getvalue().rindex(HIDE) > stream.getvalue().rfind(SHOW)
            if crash:
                raise RuntimeError
            display.stop()
    except RuntimeError:
        pass
    assert stream.getvalue().rindex(SHOW) > stream.getvalue().rindex(HIDE)
    length = len(stream.getvalue())
    display.stop()
    assert len(stream.getvalue()) == length


def test_a_display_that_never_started_stops_without_a_trace() -> None:
    display, stream = terminal(Clock())
    with display:
        display.note("refused")
    assert stream.getvalue() == "refused\n"


def test_messages_are_shown_as_they_are() -> None:
    display, stream = terminal(Clock(), width=30)
    message = "/data/[bold]/:smile:/" + "long " * 10 + "end"
    display.note(message)
    assert stream.getvalue().rstrip("\n") == message


def test_only_evaluations_leave_a_line_and_no_figure_is_torn_apart() -> None:
    display, stream = terminal(Clock(), width=48)
    display.start(10, 0, "run")
    display.epoch(1, 12, LOSSES, None)
    display.epoch(2, 12, LOSSES, FIGURES)
    display.stop()
    text = visible(stream)
    assert "epoch  1/12" not in text
    assert "epoch  2/12  segmentation miou 0.5120\n             depth abs_error 0.3100\n" in text
    assert "\N{NO-BREAK SPACE}" not in text


def test_many_tasks_do_not_break_the_bar() -> None:
    display, stream = terminal(Clock(), width=60)
    display.start(10, 0, "run")
    display.step(1, {f"task_with_a_name_{number}": 1.0 for number in range(20)})
    display.stop()
    assert max(map(len, re.split(r"[\r\n]", visible(stream)))) <= 60


# Choice


@pytest.mark.parametrize(
    ("stream", "environment", "expected"),
    [
        (io.StringIO(), {}, PlainDisplay),
        (io.StringIO(), {"FORCE_COLOR": "1"}, PlainDisplay),
        (Terminal(), {"TERM": "xterm"}, TerminalDisplay),
        (Terminal(), {"TERM": "dumb"}, PlainDisplay),
    ],
)
def test_the_stream_decides(
    monkeypatch: pytest.MonkeyPatch,
    stream: io.StringIO,
    environment: dict[str, str],
    expected: type[Display],
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert type(make_display(stream)) is expected


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def shown() -> str:
        stream = Terminal()
        with make_display(stream) as display:
            display.start(10, 5, "run")
        return stream.getvalue()

    colour = re.compile(r"\x1b\[(?:[0-9]+;)*[39][0-9]")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colour.search(shown())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(shown())


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with SilentDisplay() as display:
        display.start(2, 0, "run")
        display.note("hello")
        display.step(1, LOSSES)
        display.epoch(1, 1, LOSSES, FIGURES)
    assert capsys.readouterr() == ("", "")
