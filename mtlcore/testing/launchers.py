"""What holds for every launcher of a study's cells."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import attrs

from mtlcore.launchers import CellCommand, CellExit, Launcher
from mtlcore.system import locked

# What a cell does: it notes what happens to it, and stops as a run does. It ends with a status, or
# waits for a file "go" and ends with 0. Asked to stop, it waits for a file "leave".
_CELL = """
import os, signal, sys, threading, time
place, code, heeds_input = sys.argv[1:]

def note(*words):
    with open(os.path.join(place, "events"), "a") as file:
        print(*words, file=file)

def wait_for(*names):
    while not any(os.path.exists(os.path.join(place, name)) for name in names):
        if not os.path.exists(place):
            os._exit(5)  # the check is over, however it ended
        time.sleep(0.01)
        yield

asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))

def heed_input():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)

note("begins", os.environ.get("OMP_NUM_THREADS"))
try:
    os.close(os.open(os.path.join(place, "working"), os.O_CREAT | os.O_EXCL))
except FileExistsError:
    note("twice")
    sys.exit(4)
if heeds_input == "True":
    threading.Thread(target=heed_input, daemon=True).start()
if code == "waits":
    code = "0"
    for _ in wait_for("go"):
        if asked:
            break
    if asked:
        note("asked")
        code = "130"
        for _ in wait_for("leave"):
            if len(asked) > 1:
                note("at once")
                break
print("epoch 1")
print("mtl: the disk", "is full", sep="\\n  ", file=sys.stderr)
os.remove(os.path.join(place, "working"))
note("ends")
sys.stderr.flush()
sys.stdout.flush()
os._exit(int(code))
"""


class LauncherContract:
    """Subclass it, write `make`, and pytest checks the launcher.

    It starts small programs instead of runs, which behave as the cells of a study do.

    Attributes:
        patience: seconds after which something is said to hang.
    """

    patience: float = 120.0

    def make(self, folder: Path, lock: int) -> Launcher:
        """Return the launcher of the study in a directory."""
        raise NotImplementedError

    def test_a_cell_runs_once(self) -> None:
        """Otherwise a study waits for ever, or trains a cell again."""
        with _study_of(self) as study:
            study.start("a", code="0")
            cell_exit = study.wait()
            assert (cell_exit.location, cell_exit.code) == ("cells/a", 0), str(cell_exit)
            assert cell_exit.seconds >= 0
            assert not study.launcher.poll(), "the end of a cell is told twice"
            study.check_events("a", "begins 3", "ends")

    def test_why_a_cell_failed(self) -> None:
        """Otherwise the table of a study cannot say what went wrong."""
        with _study_of(self) as study:
            log = study.place("a") / "log.txt"
            log.write_text("of an earlier start\n")
            study.start("a", code="3")
            cell_exit = study.wait()
            assert cell_exit.code == 3, f"the status is {cell_exit.code}, not the cell's 3"
            assert cell_exit.reason == "the disk is full", f"the reason is {cell_exit.reason!r}"
            assert "earlier" not in cell_exit.output, "the output is that of an earlier start too"
            assert log.read_text().startswith("of an earlier start\n"), "the log is overwritten"
            assert "epoch 1" in log.read_text(), "the log lacks the cell's output"

    def test_cells_have_their_threads(self) -> None:
        """Otherwise cells wait for one another, and a study's last digits change."""
        with _study_of(self) as study:
            study.start("a", code="0", threads=1)
            study.wait()
            study.check_events("a", "begins 1", "ends")

    def test_cells_run_side_by_side(self) -> None:
        """Otherwise `--jobs` means nothing, or a cell's end is taken for another's."""
        with _study_of(self) as study:
            study.start("a")
            study.start("b")
            study.wait_for("a", "begins 3")
            study.wait_for("b", "begins 3")
            assert not study.launcher.poll(), "a cell that goes on is said to have ended"
            for name in ("b", "a"):
                study.touch(name, "go")
                cell_exit = study.wait()
                assert (cell_exit.location, cell_exit.code) == (f"cells/{name}", 0), str(cell_exit)

    def test_cells_are_asked_to_stop(self) -> None:
        """Otherwise Ctrl-C loses what cells have learnt since their last checkpoint."""
        with _study_of(self) as study:
            study.start("a")
            study.wait_for("a", "begins 3")
            study.launcher.stop()
            study.wait_for("a", "asked")
            assert not study.launcher.poll(), "a cell that still saves is said to have ended"
            study.touch("a", "leave")
            assert study.wait().code == 130
            study.check_events("a", "begins 3", "asked", "ends")

    def test_cells_are_stopped_at_once(self) -> None:
        """Otherwise a second Ctrl-C does nothing, and a cell that hangs keeps the study."""
        with _study_of(self) as study:
            study.start("a")
            study.wait_for("a", "begins 3")
            study.launcher.stop()
            study.wait_for("a", "asked")
            study.launcher.stop_at_once()
            assert study.wait().code != 0
            assert "ends" not in study.events("a") or "at once" in study.events("a")

    def test_a_killed_study_runs_no_cell_twice(self) -> None:
        """Otherwise two processes write one run, and ruin it."""
        with tempfile.TemporaryDirectory(prefix="mtl-contract-") as place:
            folder = Path(place)
            self.start_and_die(folder)
            outlives = self.make(folder, -1).outlives
            cell = folder / "cells" / "a"
            if not outlives:
                _until(
                    lambda: "asked" in _events(cell),
                    "a cell of a killed study to stop",
                    self.patience,
                )
                assert not _is_free(folder), "a cell does not hold the lock of its study"
                (cell / "leave").touch()
            with _study_of(self, folder) as study:
                study.start("a")
                (cell / "go").touch()
                assert study.wait().code == 0, f"the cell did not go on: {_events(cell)}"
                assert "twice" not in _events(cell), "a cell runs twice at the same time"
                begun = _events(cell).count("begins 3")
                assert begun == (1 if outlives else 2), f"the cell was begun {begun} times"

    def start_and_die(self, folder: Path) -> None:
        """Start a cell in a process that is killed, as a study may be.

        It is forked. Where a library does not bear that, override this, and call `die` in a
        process of its own.
        """
        with warnings.catch_warnings():
            # The child only starts a process and ends: no lock of another thread matters to it.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            self.die(folder)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the cell could not be started"

    def die(self, folder: Path) -> NoReturn:
        """Start a cell, and let this process be killed."""
        try:
            with _study_of(self, folder) as study:
                study.start("a")
                study.wait_for("a", "begins 3")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)


@attrs.define
class _Study:
    """A study that launches small programs, each in a directory of its own."""

    launcher: Launcher
    folder: Path
    patience: float
    running: set[str] = attrs.field(factory=set)

    def place(self, name: str) -> Path:
        place = self.folder / "cells" / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def start(self, name: str, code: str = "waits", threads: int = 3) -> None:
        place = self.place(name)
        self.running.add(f"cells/{name}")
        heeds_input = self.launcher.holds_input or not self.launcher.outlives
        self.launcher.start(
            CellCommand(
                location=f"cells/{name}",
                arguments=(sys.executable, "-c", _CELL, str(place), code, str(heeds_input)),
                log=place / "log.txt",
                threads=threads,
            )
        )  # fmt: skip

    def wait(self) -> CellExit:
        """Return how the next cell ends."""
        found: list[CellExit] = []

        def polled() -> bool:
            found.extend(self.launcher.poll())
            return bool(found)

        _until(polled, "a cell to end", self.patience, self.launcher.poll_seconds)
        self.running -= {cell_exit.location for cell_exit in found}
        assert len(found) == 1, f"{len(found)} cells are said to have ended: {found}"
        return found[0]

    def clean_up(self) -> None:
        """Let cells end that a failed test has left behind."""
        for name in self.running:
            (self.folder / name / "go").touch()
            (self.folder / name / "leave").touch()
        deadline = time.monotonic() + self.patience
        while self.running and time.monotonic() < deadline:
            self.running -= {cell_exit.location for cell_exit in self.launcher.poll()}
            time.sleep(self.launcher.poll_seconds)
        if not self.running:
            self.launcher.close()

    def events(self, name: str) -> list[str]:
        return _events(self.place(name))

    def wait_for(self, name: str, event: str) -> None:
        _until(lambda: event in self.events(name), f"{event!r} of {name}", self.patience)

    def check_events(self, name: str, *expected: str) -> None:
        events = self.events(name)
        assert events == list(expected), f"{name} went through {events}, not {list(expected)}"

    def touch(self, name: str, file: str) -> None:
        (self.place(name) / file).touch()


@contextmanager
def _study_of(contract: LauncherContract, folder: Path | None = None) -> Iterator[_Study]:
    """Hold a study's lock and launch its cells; in a directory of its own unless one is given."""
    if folder is None:
        with (
            tempfile.TemporaryDirectory(prefix="mtl-contract-", ignore_cleanup_errors=True) as own,
            _study_of(contract, Path(own)) as study,
        ):
            yield study
        return
    with locked(folder / "study.lock", lambda: None) as lock:
        study = _Study(contract.make(folder, lock), folder, contract.patience)
        try:
            yield study
        finally:
            study.clean_up()


def _events(place: Path) -> list[str]:
    file = place / "events"
    return file.read_text().splitlines() if file.exists() else []


def _until(
    condition: Callable[[], bool], what: str, patience: float, seconds: float = 0.01
) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(seconds)


def _is_free(folder: Path) -> bool:
    """Return whether nobody holds the lock of the study."""
    import fcntl  # late: not every platform has it

    with (folder / "study.lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
