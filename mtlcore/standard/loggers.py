"""Loggers: the lines of a run, written elsewhere too."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import IO, Any, final

from mtlcore.storage import Record, RunInfo, RunLogger, RunOutcome, without_nan


@final
class JsonLines(RunLogger):
    """Writes every line of `metrics.jsonl` to a stream or a file too.

    A file is appended to, also when a run is resumed: lines of steps after its checkpoint are then
    there twice, and the later ones hold.

    Args:
        to: "stdout", "stderr", or the path or fsspec URL of a file. Object stores cannot append.
    """

    def __init__(self, *, to: str = "stderr") -> None:
        self._to = to
        self._stream: IO[str] | None = None
        self._opened: Any = None

    def start(self, run: RunInfo) -> None:
        """Open the file."""
        if self._to in ("stdout", "stderr"):
            self._stream = getattr(sys, self._to)
            return
        import fsspec

        self._opened = fsspec.open(self._to, "at", encoding="utf-8")
        self._stream = self._opened.open()

    def record(self, lines: Sequence[Record]) -> None:
        """Write the lines; what is not finite is null."""
        assert self._stream is not None
        self._stream.writelines(
            json.dumps(without_nan(line), allow_nan=False) + "\n" for line in lines
        )
        self._stream.flush()

    def finish(self, outcome: RunOutcome) -> None:
        """Close the file."""
        if self._opened is not None:
            self._opened.close()
