"""The contract of launchers, which start the cells of a study and tell what became of them."""

from __future__ import annotations

import abc
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import final

import attrs

__all__ = [
    "CellCommand",
    "CellExit",
    "Launcher",
]


@final
@attrs.frozen(kw_only=True)
class CellCommand:
    """How to run one cell of a study.

    Args:
        location: The cell's directory, relative to the study's; no other cell has it.
        arguments: A program and its arguments. It is run in this process's working directory, goes
            on from the cell's last checkpoint, and ends with status 0 when the cell has its result.
        log: The file that gets its output, behind what earlier starts wrote.
        threads: What `OMP_NUM_THREADS` is set to.
    """

    location: str
    arguments: tuple[str, ...]
    log: Path
    threads: int


@final
@attrs.frozen(kw_only=True)
class CellExit:
    """How a cell's process ended.

    Args:
        location: The cell's directory, relative to the study's.
        code: The exit status; negative for the signal that killed it.
        seconds: How long it ran.
        output: What it printed.
        lost: Whether it ended by no fault of its own, such as with the machine that it ran on. The
            study starts it again, as often as its file says (`restarts`).
    """

    location: str
    code: int
    seconds: float
    output: str
    lost: bool = False

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


class Launcher(abc.ABC):
    """What starts the cells of a study, made as `Launcher(folder, lock, **settings)`.

    `folder` is the study's directory, and `lock` the file descriptor of a lock on it: a process
    that inherits the descriptor holds the lock too. The study decides which cells are started, and
    how many run at a time. A finished cell is never started again.

    Attributes:
        outlives: Whether cells go on when the study is killed. If not, they are children of this
            process that inherit the lock, and their standard input is a pipe that this process
            keeps open: a cell that reads its end stops as at SIGTERM, and the next study waits for
            the lock. If they do, `start` finds cells that an earlier study has started.
        holds_input: Whether the standard input of cells that outlive the study is such a pipe, too,
            which the process beside each of them keeps open. Then a cell never outlives that one.
            `JobLauncher` has such processes.
        poll_seconds: The time between two calls of `poll`.
    """

    outlives: bool = False
    holds_input: bool = False
    poll_seconds: float = 0.05

    @abc.abstractmethod
    def start(self, cell: CellCommand) -> None:
        """Start a cell and return at once; take up one that is still running from before.

        Raises:
            MtlError: It cannot be started.
        """

    @abc.abstractmethod
    def poll(self) -> Sequence[CellExit]:
        """Return how the cells ended that have since the last call; do not wait for any."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Ask all running cells to finish their step and save; return at once.

        The first SIGTERM does that to a cell. `poll` tells of their ends.
        """

    @abc.abstractmethod
    def stop_at_once(self) -> None:
        """Ask all running cells, which were asked to stop, not to finish their step.

        A second SIGTERM does that to a cell. `poll` tells of their ends.
        """

    def close(self) -> None:
        """Give back what starting cells took; called once no cell is to be started any more."""
        return
