"""Loggers: the lines of a run, written elsewhere too."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import final

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

    def start(self, run: RunInfo) -> None:
        """Create the file if there is none, so that a place that cannot be is told at once."""
        self._write("")

    def record(self, lines: Sequence[Record]) -> None:
        """Write the lines; what is not finite is null."""
        texts = (json.dumps(without_nan(line), allow_nan=False) + "\n" for line in lines)
        self._write("".join(texts))

    def finish(self, outcome: RunOutcome) -> None:
        """Do nothing: every line is written already."""

    def _write(self, text: str) -> None:
        if self._to in ("stdout", "stderr"):
            print(text, end="", file=getattr(sys, self._to), flush=True)
            return
        import fsspec

        # Opened for each writing, so that a killed run leaves whole lines and nothing open. Some
        # file systems append to what is there only.
        filesystem, path = fsspec.core.url_to_fs(self._to)
        mode = "at" if filesystem.exists(path) else "wt"
        with filesystem.open(path, mode, encoding="utf-8") as file:
            file.write(text)
