"""The display of samples that are read one after another: a bar on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self, TextIO, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@final
class CountingDisplay:
    """A bar per split on a terminal, nothing elsewhere; a context manager.

    Args:
        stream: where to draw; None: standard error, as standard output is for what was found.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        stream = sys.stderr if stream is None else stream
        console = Console(file=stream)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not (stream.isatty() and console.is_interactive),
        )
        self._current: TaskID | None = None

    def start(self, name: str, total: int) -> None:
        """Show that a split with so many samples begins."""
        self._current = self._progress.add_task(name, total=total)

    def advance(self, samples: int) -> None:
        """Show that so many more samples are done."""
        assert self._current is not None
        self._progress.advance(self._current, samples)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
