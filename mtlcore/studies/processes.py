"""The processes of a study's cells: a limited number at a time, each with its output in a log.

POSIX only: where there is no lock to inherit, `run_study` has refused before.
"""

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

#: The file of a cell's output, in its directory.
LOG = "log.txt"
_POLL = 0.05  # seconds


@final
@attrs.frozen(kw_only=True)
class CellExit:
    """How a cell's process ended.

    Args:
        location: The cell's directory, relative to the study's.
        code: The exit status; negative for the signal that killed it.
        seconds: How long it ran.
        output: What it printed.
    """

    location: str
    code: int
    seconds: float
    output: str

    @property
    def reason(self) -> str:
        """The reason of a failure, as one line."""
        if self.code < 0:
            name = signal.Signals(-self.code).name
            memory = ", perhaps for want of memory" if -self.code == signal.SIGKILL else ""
            return f"killed by {name}{memory}"
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        starts = [number for number, line in enumerate(lines) if line.startswith("mtl: ")]
        if starts:  # a message of mtl may have several lines
            message = " ".join(lines[starts[-1] :]).removeprefix("mtl: ")
        else:  # the last line of a traceback says most
            message = "".join(lines[-1:])
        return message or f"ended with status {self.code} and said nothing"


@attrs.frozen
class _Running:
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    started: float


@final
class CellProcesses:
    """The running cells, each a process of its own.

    Each holds the study's lock for as long as it lives, and ends when this process does, whatever
    ends it: see `mtlcore.cli.study_cell`.

    Args:
        folder: The study's directory.
        jobs: How many run at a time.
        lock: File descriptor of the study's lock.
        blocked: Ids of plugins that they must not load.
    """

    def __init__(self, folder: Path, jobs: int, lock: int, blocked: Sequence[str]) -> None:
        self.jobs = jobs
        self._folder, self._lock = folder, lock
        self._options = [word for plugin in blocked for word in ("--no-plugin", plugin)]
        self._running: dict[str, _Running] = {}

    @property
    def running(self) -> int:
        """The number of running cells."""
        return len(self._running)

    def start(self, location: str, threads: int) -> None:
        """Start or resume the cell whose directory holds its `config.toml`."""
        directory = self._folder / location
        log = directory / LOG
        arguments = [*self._options, "run", str(directory / "config.toml"), "--out", str(directory)]
        with log.open("ab") as output:
            log_start = output.seek(0, os.SEEK_END)
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
        self._running[location] = _Running(process, log, log_start, time.monotonic())

    def wait(self) -> CellExit:
        """Wait until one of the running cells ends."""
        while True:
            for location, running in self._running.items():
                if running.process.poll() is not None:
                    del self._running[location]
                    return _conclude(location, running)
            time.sleep(_POLL)

    def stop(self) -> list[CellExit]:
        """Let all cells finish their step and save; a signal meanwhile stops them at once."""
        for running in self._running.values():
            _close(running)
        exits = []
        while self._running:
            try:
                exits.append(self.wait())
            except KeyboardInterrupt:
                for running in self._running.values():
                    running.process.terminate()
        return exits


def _conclude(location: str, running: _Running) -> CellExit:
    _close(running)
    with running.log.open("rb") as log:
        log.seek(running.log_start)
        output = log.read().decode("utf-8", "replace")
    return CellExit(
        location=location,
        code=running.process.returncode,
        seconds=time.monotonic() - running.started,
        output=output,
    )


def _close(running: _Running) -> None:
    assert running.process.stdin is not None
    running.process.stdin.close()
