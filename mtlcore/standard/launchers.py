"""The launcher that needs nothing: a process on this machine for each cell.

POSIX only: where there is no lock to inherit, a study has been refused before.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, final

import attrs

from mtlcore.launchers import CellCommand, CellExit, Launcher


@attrs.frozen
class _Running:
    log: Path
    log_start: int
    started: float

    def ended(self, location: str, code: int) -> CellExit:
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            output = log.read().decode("utf-8", "replace")
        seconds = time.monotonic() - self.started
        return CellExit(location=location, code=code, seconds=seconds, output=output)


@final
class Local(Launcher):
    """Runs each cell as a process of its own, which ends when the study does, whatever ends that.

    The processes are forks of one that has imported torch, `mtlcore.cli.cell_server`.

    Args:
        folder: The study's directory.
        lock: File descriptor of the study's lock; each cell holds it for as long as it lives.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self._lock = lock
        self._running: dict[str, _Running] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._unfinished_line = b""

    def start(self, cell: CellCommand) -> None:
        """Have the cell's process forked."""
        with cell.log.open("ab") as output:
            log_start = output.seek(0, os.SEEK_END)
        self._running[cell.location] = _Running(cell.log, log_start, time.monotonic())
        self._order(
            start=cell.arguments,
            location=cell.location,
            log=str(cell.log.absolute()),
            threads=cell.threads,
        )

    def poll(self) -> list[CellExit]:
        """Return the cells whose processes have ended."""
        if self._server is None:
            return []
        assert self._server.stdout is not None
        answers = self._server.stdout.fileno()
        exits: list[CellExit] = []
        while select.select([answers], [], [], 0)[0]:
            if not (data := os.read(answers, 65536)):
                # The server died, and its cells have saved and ended.
                return exits + self._lost(self._server)
            *lines, self._unfinished_line = (self._unfinished_line + data).split(b"\n")
            for answer in map(json.loads, lines):
                location = answer["location"]
                exits.append(self._running.pop(location).ended(location, answer["code"]))
        return exits

    def stop(self) -> None:
        """Close the standard input of every cell."""
        self._order(stop=True)

    def stop_at_once(self) -> None:
        """Send SIGTERM to every cell."""
        self._order(stop_at_once=True)

    def close(self) -> None:
        """End the process that forks."""
        if self._server is not None:
            self._server.communicate()
            self._server = None

    def _order(self, **order: Any) -> None:
        if self._server is None:
            self._server = self._started()
        assert self._server.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: `poll` says so of each cell
            self._server.stdin.write(json.dumps(order).encode() + b"\n")

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            (sys.executable, "-m", "mtlcore.cli.cell_server"),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Cells set their number of threads themselves; more here could not be forked.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            pass_fds=(self._lock,),
            # Ctrl-C on a terminal is for the study, which tells its cells once.
            process_group=0,
        )

    def _lost(self, server: subprocess.Popen[bytes]) -> list[CellExit]:
        with server:  # its pipes are closed
            self._server, self._unfinished_line = None, b""
        lost, self._running = self._running, {}
        return [cell.ended(name, server.returncode or 1) for name, cell in lost.items()]
