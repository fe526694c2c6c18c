"""`python -m mtlcore.cli.cell_server` starts the cells of a study.

Imports take seconds, more than a short run trains. This process imports once: the fork that would
become `python -m mtlcore.cli.study_cell` already is what that would import.

Its standard input has an order per line, as JSON, and its standard output an answer per line:

- `{"start": [PROGRAM, ARGUMENT, ...], "location": NAME, "log": FILE, "threads": N}` starts a cell.
- `{"stop": true}` closes the standard input of every cell, at which it stops as after Ctrl-C.
- `{"stop_at_once": true}` sends SIGTERM to every cell.
- `{"location": NAME, "code": STATUS}` answers that a cell has ended, negative for a signal.

At the end of its standard input it does as at "stop", and ends after the last cell. When it dies,
the cells stop as well; its standard output ends after the last, for they keep it open.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from typing import Any, final

from mtlcore.cli.study_cell import run_cell

_CELL = [sys.executable, "-m", "mtlcore.cli.study_cell"]
_POLL_SECONDS = 0.02


@final
class _Server:
    """The cells that run, each with the end of its standard input that this process holds."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders, self._answers = orders, answers
        self._cells: dict[int, tuple[str, int]] = {}
        self._unfinished_line = b""

    def serve(self) -> list[str] | None:
        """Obey orders until they end; in a cell's process, return the arguments of `mtl`."""
        reading = True
        while reading or self._cells:
            if select.select([self._orders] if reading else [], [], [], _POLL_SECONDS)[0]:
                lines = self._read()
                reading = lines is not None
                for line in lines or ():
                    if (arguments := self._obey(json.loads(line))) is not None:
                        return arguments
                if not reading:
                    self._let_all_end()
            self._answer()
        return None

    def _read(self) -> list[bytes] | None:
        """Return the whole lines that have come; None at the end."""
        if not (data := os.read(self._orders, 65536)):
            return None
        *lines, self._unfinished_line = (self._unfinished_line + data).split(b"\n")
        return lines

    def _obey(self, order: dict[str, Any]) -> list[str] | None:
        if "start" in order:
            return self._start(order)
        if "stop" in order:
            self._let_all_end()
        if "stop_at_once" in order:
            for pid in self._cells:
                os.kill(pid, signal.SIGTERM)
        return None

    def _start(self, order: dict[str, Any]) -> list[str] | None:
        command = order["start"]
        if command[:3] == _CELL:
            _import_all()
        theirs, ours = os.pipe()
        if pid := os.fork():
            os.close(theirs)
            self._cells[pid] = (order["location"], ours)
            return None
        # Ctrl-C on a terminal is for the study, which tells its cells once.
        os.setpgid(0, 0)
        # A cell that held another one's end would keep it from noticing that this process died.
        for end in (ours, *(end for _, end in self._cells.values())):
            _closed(end)
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        # Kept open until this cell ends, though it writes nothing to it.
        os.set_inheritable(os.dup(self._answers), True)
        for source, target in ((theirs, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(theirs)
        os.close(log)
        os.environ["OMP_NUM_THREADS"] = str(order["threads"])
        if command[:3] != _CELL:
            os.execvp(command[0], command)
        return list(command[3:])

    def _let_all_end(self) -> None:
        self._cells = {
            pid: (location, _closed(end)) for pid, (location, end) in self._cells.items()
        }

    def _answer(self) -> None:
        """Tell of the cells that have ended."""
        for pid, (location, end) in tuple(self._cells.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _closed(end)
                del self._cells[pid]
                answer = {"location": location, "code": os.waitstatus_to_exitcode(status)}
                os.write(self._answers, json.dumps(answer).encode() + b"\n")


def _closed(end: int) -> int:
    """Close a file descriptor, unless it was; return what stands for a closed one."""
    if end >= 0:
        os.close(end)
    return -1


def _import_all() -> None:
    """Import what a run needs; torch takes longest."""
    import mtlcore.report
    import mtlcore.runs  # noqa: F401


def main() -> None:
    """Serve orders until they end."""
    arguments = _Server(0, 1).serve()
    if arguments is not None:
        sys.argv = ["mtl", *arguments]
        run_cell(arguments)


if __name__ == "__main__":
    main()
