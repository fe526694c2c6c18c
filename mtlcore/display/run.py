"""The display of a run that trains: a bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

import abc
import math
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mtlcore.metrics import MetricValues


_RECENT = 20  # steps over which a shown loss is smoothed
_HORIZON = 0.25  # of all steps: a change of speed is believed after about that share of the run


def digits(value: float) -> str:
    """Return a value with four significant digits: "0.5120", "12.34", "1234", "2.000e-05"."""
    return f"{value:#.4g}".rstrip(".")


def clock(seconds: float) -> str:
    """Return a duration as "0:02:10"."""
    return str(timedelta(seconds=round(seconds)))


@final
class Pace:
    """The speed of this process and the time left at that speed.

    The first step is not counted: it starts workers and warms up caches and kernels, and in a small
    run takes as long as a hundred others. Steps of an earlier process are not counted either.

    Args:
        now: A clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.start(0, 0)

    def start(self, total_steps: int, done_steps: int) -> None:
        """Start again with `done_steps` of `total_steps` done before."""
        self.total, self.done = total_steps, done_steps
        self._started = self._now()
        self._last: float | None = None
        # Decayed sums, so that their quotient is a mean from the first value on.
        self._seconds, self._steps = 0.0, 0.0

    def step(self, step: int) -> None:
        """Note that `step` steps are done."""
        now, new = self._now(), step - self.done
        if self._last is not None and new > 0:
            kept = max(0.0, 1 - new / max(1.0, _HORIZON * self.total))
            self._seconds = kept * self._seconds + now - self._last
            self._steps = kept * self._steps + new
        self._last, self.done = now, step

    @property
    def elapsed(self) -> float:
        """The seconds since the start."""
        return self._now() - self._started

    @property
    def seconds_left(self) -> float | None:
        """The seconds to the end; None before two steps are done."""
        if not self._steps:
            return None
        return self._seconds / self._steps * (self.total - self.done)


class Display(abc.ABC):
    """Shows a run that trains; a context manager, so that a terminal is always left in order.

    All numbers are plain floats: a display never waits for a device.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._pace = Pace(now)
        self._recent: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, total_steps: int, done_steps: int, title: str) -> None:
        """Show that the run begins, or goes on after `done_steps` of an earlier process."""
        self._pace.start(total_steps, done_steps)
        self._recent = {}
        self._begin(title)

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """Show that a step is done.

        Args:
            step: How many steps of the run are done.
            losses: Task -> loss of the last step, for the tasks that it had. A loss that is not
                finite is left out: its step was skipped, which `note` tells.
        """
        self._pace.step(step)
        for task, loss in losses.items():
            if math.isfinite(loss):
                before = self._recent.get(task, loss)
                self._recent[task] = before + (loss - before) / _RECENT

    @abc.abstractmethod
    def note(self, message: str) -> None:
        """Show a message that stays."""

    def warn(self, message: str) -> None:
        """Show a message about something unexpected; here like any other."""
        self.note(message)

    @abc.abstractmethod
    def epoch(
        self,
        epoch: int,
        epochs: int,
        losses: Mapping[str, float],
        metrics: MetricValues | None,
    ) -> None:
        """Show that an epoch is done.

        Args:
            epoch: Its number, from 1.
            epochs: The number of epochs.
            losses: Task -> training loss.
            metrics: Task -> metric -> value if there was an evaluation. The first metric that is
                not the loss stands for the task.
        """

    @abc.abstractmethod
    def stop(self) -> None:
        """Leave the terminal as it was; calling it again does nothing."""

    @abc.abstractmethod
    def _begin(self, title: str) -> None: ...


@final
class TerminalDisplay(Display):
    """Shows a bar with the time left and a line of losses below; messages scroll by above.

    Only evaluations leave a line, so that a run of many short epochs does not flood the screen.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now)
        self._console = console
        self._live: Live | None = None

    def _begin(self, title: str) -> None:
        self.stop()
        self._console.print(Text(title, style="bold"), soft_wrap=True)
        # Steps only store numbers; the bar is drawn from them four times a second.
        self._live = Live(
            console=self._console,
            get_renderable=self._bar,
            refresh_per_second=4,
            transient=True,
        )
        self._live.start()

    def note(self, message: str) -> None:
        """Print the message above the bar."""
        self._console.print(Text(message), soft_wrap=True)

    def epoch(
        self,
        epoch: int,
        epochs: int,
        losses: Mapping[str, float],
        metrics: MetricValues | None,
    ) -> None:
        """Print the first metric of each task above the bar, if there was an evaluation."""
        if metrics is None:
            return
        head = _epoch_of(epoch, epochs) + "  "
        # A value stays on one line with its name.
        unbroken = "  ".join(
            metric.replace(" ", "\N{NO-BREAK SPACE}") for metric in _first_metrics(metrics)
        )
        width = max(len(head) + 1, self._console.width)
        lines = textwrap.fill(head + unbroken, width, subsequent_indent=" " * len(head))
        self.note(lines.replace("\N{NO-BREAK SPACE}", " "))

    def stop(self) -> None:
        """Remove the bar and show the cursor."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _bar(self) -> RenderableType:
        pace = self._pace
        done, total = pace.done, max(1, pace.total)
        grid = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, 1, None, None, None):
            grid.add_column(ratio=ratio, no_wrap=True)
        grid.add_row(
            f"{math.floor(100 * done / total):3d}%",
            ProgressBar(total=total, completed=done),
            f"{done}/{pace.total}",
            clock(pace.elapsed),
            _time_left(pace.seconds_left),
        )
        losses = _loss_line(self._recent) or "waiting for the first step"
        return Group(grid, Text(f"loss  {losses}", no_wrap=True, overflow="ellipsis"))


@final
class PlainDisplay(Display):
    """Prints a line per epoch without control characters: for files, pipes and batch systems."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(now)
        self._stream = stream

    def _begin(self, title: str) -> None:
        self.note(title)

    def note(self, message: str) -> None:
        """Print the message."""
        # Flushed: whoever follows a log wants to see the line when it is true.
        print(message, file=self._stream, flush=True)

    def epoch(
        self,
        epoch: int,
        epochs: int,
        losses: Mapping[str, float],
        metrics: MetricValues | None,
    ) -> None:
        """Print one line."""
        self.note(epoch_line(epoch, epochs, losses, metrics, self._pace.seconds_left))

    def stop(self) -> None:
        """Do nothing: the terminal was not changed."""


@final
class SilentDisplay(Display):
    """Shows nothing."""

    def _begin(self, title: str) -> None: ...

    def note(self, message: str) -> None:
        """Do nothing."""

    def epoch(
        self,
        epoch: int,
        epochs: int,
        losses: Mapping[str, float],
        metrics: MetricValues | None,
    ) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


def make_display(stream: TextIO | None = None) -> Display:
    """Return the display that suits a stream, by default standard output."""
    stream = sys.stdout if stream is None else stream
    console = Console(file=stream)
    # Rich calls a file a terminal if FORCE_COLOR is set; a bar in a file would still be no use.
    if stream.isatty() and console.is_interactive:
        return TerminalDisplay(console)
    return PlainDisplay(stream)


def epoch_line(
    epoch: int,
    epochs: int,
    losses: Mapping[str, float],
    metrics: MetricValues | None,
    seconds_left: float | None,
) -> str:
    """Return an epoch as one line: losses, the first metric of each task, the time left."""
    parts = [_epoch_of(epoch, epochs), f"loss {_loss_line(losses)}"]
    if metrics is not None:
        parts.append(f"evaluation {'  '.join(_first_metrics(metrics))}")
    return " | ".join([*parts, _time_left(seconds_left)])


def _epoch_of(epoch: int, epochs: int) -> str:
    return f"epoch {epoch:{len(str(epochs))}d}/{epochs}"


def _time_left(seconds: float | None) -> str:
    return "left " + ("-:--:--" if seconds is None else clock(seconds))


def _loss_line(losses: Mapping[str, float]) -> str:
    return "  ".join(f"{task} {digits(loss)}" for task, loss in losses.items())


def _first_metrics(metrics: MetricValues) -> list[str]:
    """Return per task its name and its first metric that is not the loss."""
    return [
        f"{task} {metric} {digits(value)}"
        for task, values in metrics.items()
        for metric, value in [item for item in values.items() if item[0] != "loss"][:1]
    ]
