"""The launcher that needs nothing: a process on this machine for each cell.

POSIX only: where there is no lock to inherit, a study has been refused before.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import final

import attrs

from mtlcore.launchers import CellCommand, CellExit, Launcher


@attrs.frozen
class _Running:
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    started: float


@final
class Local(Launcher):
    """Starts each cell as a process of its own, which ends when the study does, whatever ends that.

    Args:
        folder: The study's directory.
        lock: File descriptor of the study's lock; each cell holds it for as long as it lives.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self._lock = lock
        self._running: dict[str, _Running] = {}

    def start(self, cell: CellCommand) -> None:
        """Start the cell's process."""
        with cell.log.open("ab") as output:
            log_start = output.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                cell.arguments,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(cell.threads)},
                pass_fds=(self._lock,),
                # Ctrl-C on a terminal is for the study, which tells its cells once.
                process_group=0,
            )
        self._running[cell.location] = _Running(process, cell.log, log_start, time.monotonic())

    def poll(self) -> list[CellExit]:
        """Return the cells whose processes have ended."""
        ended = [name for name, cell in self._running.items() if cell.process.poll() is not None]
        return [_conclude(name, self._running.pop(name)) for name in ended]

    def stop(self) -> None:
        """Close the standard input of every cell."""
        for running in self._running.values():
            _close(running)

    def stop_at_once(self) -> None:
        """Send SIGTERM to every cell."""
        for running in self._running.values():
            running.process.terminate()


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
