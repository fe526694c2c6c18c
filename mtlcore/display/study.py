"""The display of a study that runs: a bar on a terminal, one line per cell elsewhere."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mtlcore.display.run import clock


@final
class Outlook:
    """The cells that wait and run, and how long they will take.

    A cell is expected to take the median time of the finished ones of its kind (the same variant,
    another seed), or of all finished ones where there is none of its kind: one that was suspended
    for an hour says little about the others.

    Args:
        kinds: Kinds of all cells that are to run.
        done: Number of the cells that were finished before.
        jobs: Cells that run at a time.
        now: A clock in seconds.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        done: int,
        jobs: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now, self._jobs = now, jobs
        self._began = now()
        # Replaced and never changed, as another thread draws from them.
        self._waiting = tuple(kinds)
        self._took: dict[str, tuple[float, ...]] = {}
        self._running: dict[str, tuple[str, float]] = {}
        self.total, self.done = done + len(kinds), done

    def expect(self, kinds: Sequence[str]) -> None:
        """Note that further cells are to run."""
        self._waiting = (*self._waiting, *kinds)
        self.total += len(kinds)

    def named(self, expected: str, kinds: Sequence[str]) -> None:
        """Note of what kinds some of the cells are that were expected."""
        for kind in kinds:
            place = self._waiting.index(expected)
            self._waiting = (*self._waiting[:place], kind, *self._waiting[place + 1 :])

    def took(self, kind: str, seconds: float) -> None:
        """Note that a cell of a kind took so many seconds."""
        self._took = {**self._took, kind: (*self._took.get(kind, ()), seconds)}

    def started(self, name: str, kind: str) -> None:
        """Note that a waiting cell runs now."""
        place = self._waiting.index(kind)
        self._waiting = self._waiting[:place] + self._waiting[place + 1 :]
        self._running = {**self._running, name: (kind, self._now())}

    def ended(self, name: str) -> None:
        """Note that a cell has ended."""
        self._running = {one: what for one, what in self._running.items() if one != name}
        self.done += 1

    def lost(self, name: str) -> None:
        """Note that a running cell was lost, and waits again."""
        kind, _ = self._running[name]
        self._running = {one: what for one, what in self._running.items() if one != name}
        self._waiting = (*self._waiting, kind)

    @property
    def elapsed(self) -> float:
        """The seconds since the start."""
        return self._now() - self._began

    @property
    def running(self) -> dict[str, float]:
        """Name of each running cell -> for how many seconds it has run."""
        now = self._now()
        return {name: now - start for name, (_, start) in self._running.items()}

    @property
    def seconds_left(self) -> float | None:
        """The seconds to the end; None before a cell is finished."""
        if not self._took:
            return None
        now = self._now()
        running = [
            max(0.0, self._expected(kind) - (now - start)) for kind, start in self._running.values()
        ]
        waiting = sum(self._expected(kind) for kind in self._waiting)
        return max([(sum(running) + waiting) / self._jobs, *running])

    def _expected(self, kind: str) -> float:
        known = self._took.get(kind) or [one for many in self._took.values() for one in many]
        return statistics.median(known)


@final
class StudyDisplay:
    """Shows a study's cells; a context manager, so that a terminal is always left in order.

    Args:
        stream: Where to print; None: standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        stream = sys.stdout if stream is None else stream
        self._console = Console(file=stream)
        self._bar = stream.isatty() and self._console.is_interactive
        self._live: Live | None = None
        self._outlook: Outlook | None = None

    def start(self, title: str, outlook: Outlook) -> None:
        """Show that the study begins, or goes on."""
        self._outlook = outlook
        before = f", {outlook.done} of them done before" if outlook.done else ""
        self.note(f"{title}: {outlook.total} cells{before}")
        if self._bar:
            self._live = Live(
                console=self._console,
                get_renderable=self._drawn,
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()

    def ended(self, text: str) -> None:
        """Show that a cell has ended, as the text says."""
        assert self._outlook is not None
        outlook = self._outlook
        self.note(f"{outlook.done}/{outlook.total}  {text}  {_left(outlook)}")

    def note(self, message: str) -> None:
        """Show a message that stays."""
        self._console.print(Text(message), soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _drawn(self) -> RenderableType:
        outlook = self._outlook
        assert outlook is not None
        grid = Table.grid(padding=(0, 2), expand=True)
        for ratio in (1, None, None, None):
            grid.add_column(ratio=ratio, no_wrap=True)
        grid.add_row(
            ProgressBar(total=max(1, outlook.total), completed=outlook.done),
            f"{outlook.done}/{outlook.total} cells",
            clock(outlook.elapsed),
            _left(outlook),
        )
        running = [f"{name} ({clock(seconds)})" for name, seconds in outlook.running.items()]
        return Group(grid, Text("  ".join(running), no_wrap=True, overflow="ellipsis"))


def _left(outlook: Outlook) -> str:
    seconds = outlook.seconds_left
    return "left " + ("-:--:--" if seconds is None else clock(seconds))
