"""The processes of a study's cells: so many at a time, their output in a log, none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import final

import attrs

#: Where a cell's output goes, in its directory.
LOG = "log.txt"
_POLL = 0.05  # seconds


@final
@attrs.frozen(kw_only=True)
class Ended:
    """A process that has ended.

    Args:
        location: of its cell, within the study's folder.
        code: its exit status, negative for the signal that killed it.
        seconds: that it ran.
        said: its output.
    """

    location: str
    code: int
    seconds: float
    said: str

    @property
    def why(self) -> str:
        """The reason of a failure as one line."""
        if self.code < 0:
            name = signal.Signals(-self.code).name
            memory = ", perhaps for want of memory" if -self.code == signal.SIGKILL else ""
            return f"killed by {name}{memory}"
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        told = [number for number, line in enumerate(lines) if line.startswith("mtl: ")]
        # A message of mtl may go on over several lines; of a traceback the last line counts.
        said = " ".join(lines[told[-1] :]).removeprefix("mtl: ") if told else "".join(lines[-1:])
        return said or f"ended with status {self.code} and said nothing"


@attrs.frozen
class _Running:
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    started: float


@final
class CellProcesses:
    """Runs in processes of their own.

    Each holds the study's lock as long as it lives, and ends when this process does, whatever
    ends it: see `mtlcore.cli.study_cell`.

    Args:
        folder: of the study.
        jobs: so many at a time.
        lock: file descriptor that is locked.
        blocked: plugins that they must not load.
    """

    def __init__(self, folder: Path, jobs: int, lock: int, blocked: Sequence[str]) -> None:
        self.jobs = jobs
        self._folder, self._lock = folder, lock
        self._options = [word for plugin in blocked for word in ("--no-plugin", plugin)]
        self._running: dict[str, _Running] = {}

    @property
    def running(self) -> int:
        """How many are running."""
        return len(self._running)

    def start(self, location: str, threads: int) -> None:
        """Run, or go on with, the cell whose folder holds its `config.toml`."""
        place = self._folder / location
        log = place / LOG
        arguments = [*self._options, "run", str(place / "config.toml"), "--out", str(place)]
        with log.open("ab") as output:
            start = output.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                [sys.executable, "-m", "mtlcore.cli.study_cell", *arguments, "--resume"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                pass_fds=(self._lock,),
                # Ctrl-C on a terminal is for the study, which tells its cells once.
                process_group=0,
            )
        self._running[location] = _Running(process, log, start, time.monotonic())

    def wait(self) -> Ended:
        """Wait until one of the running ones ends."""
        while True:
            for location, running in self._running.items():
                if running.process.poll() is not None:
                    del self._running[location]
                    return _ended(location, running)
            time.sleep(_POLL)

    def stop(self) -> list[Ended]:
        """Let all finish their step and save; a signal meanwhile stops them at once."""
        for running in self._running.values():
            _close(running)
        ended = []
        while self._running:
            try:
                ended.append(self.wait())
            except KeyboardInterrupt:
                for running in self._running.values():
                    running.process.terminate()
        return ended


def _ended(location: str, running: _Running) -> Ended:
    _close(running)
    with running.log.open("rb") as log:
        log.seek(running.log_start)
        said = log.read().decode("utf-8", "replace")
    return Ended(
        location=location,
        code=running.process.returncode,
        seconds=time.monotonic() - running.started,
        said=said,
    )


def _close(running: _Running) -> None:
    assert running.process.stdin is not None
    running.process.stdin.close()
