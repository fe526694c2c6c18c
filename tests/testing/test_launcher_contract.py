"""Launchers that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time

import attrs
import pytest

from mtlcore.launchers import CellExit, Launcher
from mtlcore.standard.launchers import Local
from mtlcore.testing import LauncherContract

pytest.importorskip("fcntl", reason="studies need file locks")


class Wrapped(Launcher):
    """What a good launcher does."""

    def __init__(self, folder, lock):
        self.inner = Local(folder, lock)

    def start(self, cell):
        self.inner.start(cell)

    def poll(self):
        return self.inner.poll()

    def stop(self):
        self.inner.stop()

    def stop_at_once(self):
        self.inner.stop_at_once()

    def close(self):
        self.inner.close()


class TellsTwice(Wrapped):
    told = ()

    def poll(self):
        self.told = self.inner.poll() or self.told
        return self.told


class SaysOneOnFailure(Wrapped):
    def poll(self):
        return [attrs.evolve(e, code=min(e.code, 1)) for e in self.inner.poll()]


class WholeLog(Wrapped):
    def start(self, cell):
        self.log = cell.log
        super().start(cell)

    def poll(self):
        return [attrs.evolve(e, output=self.log.read_text()) for e in self.inner.poll()]


class ThreadsOfTheMachine(Wrapped):
    def start(self, cell):
        super().start(attrs.evolve(cell, threads=7))


class OneAfterTheOther(Wrapped):
    def start(self, cell):
        self.waiting = [*getattr(self, "waiting", ()), cell]
        if len(self.waiting) == 1:
            super().start(cell)

    def poll(self):
        ended = self.inner.poll()
        for _ in ended:
            del self.waiting[0]
            if self.waiting:
                super().start(self.waiting[0])
        return ended


class DoesNotAsk(Wrapped):
    def stop(self):
        pass


class AsksForEver(Wrapped):
    def stop_at_once(self):
        self.inner.stop()


class NoLock(Wrapped):
    def __init__(self, folder, lock):
        super().__init__(folder, os.open(os.devnull, os.O_RDONLY))


class Detached(Launcher):
    """Cells that outlive the study: a shell notes their number and their status."""

    outlives = True

    def __init__(self, folder, lock):
        self.folder, self.running = folder, {}

    def start(self, cell):
        note = self.note(cell.location)
        log_start = cell.log.stat().st_size if cell.log.exists() else 0
        if not note.exists():
            command = f"{shlex.join(cell.arguments)} >> {cell.log} 2>&1; echo $? > {note}.ended"
            started = subprocess.run(
                ["sh", "-c", f"(trap '' TERM; {command}) > {os.devnull} 2>&1 & echo $$"],
                env={**os.environ, "OMP_NUM_THREADS": str(cell.threads)},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
                check=True, text=True,
            )  # fmt: skip
            note.write_text(started.stdout)
        self.running[cell.location] = (cell.log, log_start, time.monotonic())

    def note(self, location):
        return self.folder / location / "detached"

    def poll(self):
        exits = []
        for location, (log, log_start, started) in list(self.running.items()):
            ended = self.note(location).with_name("detached.ended")
            if ended.exists() and ended.read_text().strip():
                code = int(ended.read_text())
                seconds = time.monotonic() - started
                output = log.read_bytes()[log_start:].decode()
                exits.append(CellExit(location=location, code=code, seconds=seconds, output=output))
                del self.running[location]
                self.note(location).unlink()
                ended.unlink()
        return exits

    def stop(self):
        for location in self.running:
            os.killpg(int(self.note(location).read_text()), signal.SIGTERM)

    def stop_at_once(self):
        self.stop()


class ForgetsWhatRuns(Detached):
    def start(self, cell):
        again = self.note(cell.location).exists()
        self.note(cell.location).unlink(missing_ok=True)
        super().start(cell)
        events = self.folder / cell.location / "events"
        while again and events.read_text().count("begins") < 2:
            time.sleep(0.01)


LAUNCHERS = [
    (TellsTwice, "test_a_cell_runs_once", "told twice"),
    (SaysOneOnFailure, "test_why_a_cell_failed", "the status is 1"),
    (WholeLog, "test_why_a_cell_failed", "of an earlier start too"),
    (ThreadsOfTheMachine, "test_cells_have_their_threads", "begins 7"),
    (OneAfterTheOther, "test_cells_run_side_by_side", "in vain for .begins 3. of b"),
    (DoesNotAsk, "test_cells_are_asked_to_stop", "in vain for .asked."),
    (AsksForEver, "test_cells_are_stopped_at_once", "in vain for a cell to end"),
    (NoLock, "test_a_killed_study_runs_no_cell_twice", "does not hold the lock"),
    (ForgetsWhatRuns, "test_a_killed_study_runs_no_cell_twice", "twice|begun 2 times|go on"),
]


@pytest.mark.parametrize(("component", "test", "message"), LAUNCHERS)
def test_launchers(component, test, message, held_to, catches):
    contract = held_to(LauncherContract, component)
    contract.patience = 4.0
    catches(contract, test, message)


@pytest.mark.parametrize("component", [Local, Detached])
def test_good_launchers_pass(component, held_to, passes):
    passes(held_to(LauncherContract, component))


def test_every_check_catches_something(catch_all):
    catch_all(LauncherContract, LAUNCHERS)
