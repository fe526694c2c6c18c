"""Cells as jobs: what becomes of them, whatever the cluster says."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtlcore.launchers import CellCommand, CellJob, JobLauncher, JobState

pytest.importorskip("fcntl", reason="studies need file locks")


class Cluster(JobLauncher):
    """A cluster whose jobs are where a test says."""

    patience = 0.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, -1)
        self.states: dict[str, JobState] = {}
        self.submitted: list[str] = []
        self.cancelled: list[str] = []

    def submit(self, job: CellJob, name: str) -> str:
        pickle.dumps(job)
        self.submitted.append(name)
        self.states[name] = JobState(phase="running")
        return name

    def find(self, name: str, identity: str | None) -> str | None:
        alive = name in self.states and self.states[name].phase in ("waiting", "running")
        return name if alive else None

    def state(self, identity: str) -> JobState:
        return self.states[identity]

    def cancel(self, identity: str) -> None:
        self.cancelled.append(identity)


@pytest.fixture
def cell(tmp_path: Path) -> CellCommand:
    place = tmp_path / "cells" / "a" / "seed-0"
    place.mkdir(parents=True)
    (place / "log.txt").write_text("before\nmtl: no\n")
    return CellCommand(
        location="cells/a/seed-0", arguments=("true",), log=place / "log.txt", threads=1
    )


@pytest.fixture
def cluster(cell: CellCommand, tmp_path: Path) -> Cluster:
    made = Cluster(tmp_path)
    made.start(cell)
    return made


def tell(cell: CellCommand, code: int) -> None:
    """What the job writes when the cell has ended."""
    told = {"code": code, "seconds": 2.0, "log_start": len("before\n")}
    (cell.log.parent / "job" / "ended.json").write_text(json.dumps(told))


def test_names_are_those_of_one_cell(cell: CellCommand, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    cluster = Cluster(tmp_path)
    for place in (cell.log.parent, tmp_path / "other"):
        cluster.start(CellCommand(location=cell.location, arguments=(), log=place / "log.txt",
                                  threads=1))  # fmt: skip
    assert len(set(cluster.submitted)) == 2
    assert all(name.startswith("mtl-a-seed-0-") for name in cluster.submitted)


def test_what_a_job_tells_is_passed_on(cluster: Cluster, cell: CellCommand) -> None:
    assert not cluster.poll()
    tell(cell, 1)
    (cell_exit,) = cluster.poll()
    assert (cell_exit.code, cell_exit.seconds, cell_exit.output) == (1, 2.0, "mtl: no\n")
    assert not cell_exit.lost and not cluster.poll()


def test_a_job_without_a_word_is_waited_for(cluster: Cluster, cell: CellCommand) -> None:
    """A network's file system may show a file late."""
    cluster.patience = 60.0
    (name,) = cluster.submitted
    cluster.states[name] = JobState(phase="ended", reason="it was cancelled")
    assert not cluster.poll()
    tell(cell, 0)
    (cell_exit,) = cluster.poll()
    assert cell_exit.code == 0


@pytest.mark.parametrize(("phase", "lost"), [("ended", False), ("lost", True)])
def test_a_job_without_a_word_has_no_result(cluster: Cluster, phase: Any, lost: bool) -> None:
    (name,) = cluster.submitted
    cluster.states[name] = JobState(phase=phase, reason="its machine failed")
    (cell_exit,) = cluster.poll()
    assert (cell_exit.code, cell_exit.lost) == (1, lost)
    assert cell_exit.reason == f"its job {name}: its machine failed"


@pytest.mark.parametrize(("phase", "lost"), [("ended", False), ("lost", True)])
def test_a_cell_that_stopped_unasked_may_have_lost_its_place(
    cluster: Cluster, cell: CellCommand, phase: Any, lost: bool
) -> None:
    (name,) = cluster.submitted
    tell(cell, 130)
    cluster.states[name] = JobState(phase="waiting")
    assert not cluster.poll(), "it is queued again"
    cluster.states[name] = JobState(phase=phase)
    (cell_exit,) = cluster.poll()
    assert (cell_exit.code, cell_exit.lost) == (130, lost)


def test_what_was_asked_to_stop_is_not_lost(cluster: Cluster, cell: CellCommand) -> None:
    (name,) = cluster.submitted
    cluster.stop()
    assert (cell.log.parent / "job" / "request").read_text() == "stop"
    cluster.states[name] = JobState(phase="lost")
    tell(cell, 130)
    (cell_exit,) = cluster.poll()
    assert (cell_exit.code, cell_exit.lost) == (130, False)


def test_a_job_that_waits_is_taken_back(cluster: Cluster) -> None:
    (name,) = cluster.submitted
    cluster.states[name] = JobState(phase="waiting")
    cluster.stop()
    (cell_exit,) = cluster.poll()
    assert cluster.cancelled == [name] and cell_exit.code == 130


def test_another_start_takes_a_job_up(cluster: Cluster, cell: CellCommand, tmp_path: Path) -> None:
    again = Cluster(tmp_path)
    again.states = cluster.states
    again.start(cell)
    assert not again.submitted
    tell(cell, 0)
    assert [cell_exit.code for cell_exit in again.poll()] == [0]


def test_what_an_earlier_start_stopped_is_begun_again(
    cluster: Cluster, cell: CellCommand, tmp_path: Path
) -> None:
    cluster.stop()
    again = Cluster(tmp_path)
    again.states = cluster.states
    again.start(cell)
    tell(cell, 130)
    (name,) = cluster.submitted
    again.states[name] = JobState(phase="ended")
    (cell_exit,) = again.poll()
    assert cell_exit.lost, "nobody has asked this start to stop"
    again.start(cell)
    assert again.submitted == [name] and not again.poll(), "the end of the first job counts again"


# Jobs that run

JOB = """
import pickle, sys
from pathlib import Path
sys.exit(pickle.loads(Path(sys.argv[1]).read_bytes()).run())
"""
# It says where it is, and waits for a file; asked to stop, it says so.
CELL = """
import os, signal, sys, threading, time
def heed():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=heed, daemon=True).start()
def stop(*_):
    print("stopped", flush=True)
    os._exit(130)
signal.signal(signal.SIGTERM, stop)
print("in", os.getcwd(), os.environ["COLOUR"], os.environ["OMP_NUM_THREADS"], flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
"""


@pytest.fixture
def job(
    tmp_path: Path, cell: CellCommand, spawn: Callable[..., subprocess.Popen[bytes]]
) -> Callable[[], subprocess.Popen[bytes]]:
    Cluster(tmp_path).start(cell)  # makes the files
    made = CellJob(
        command=CellCommand(location=cell.location, arguments=(sys.executable, "-c", CELL),
                            log=cell.log, threads=3),
        directory=str(tmp_path),
        environment={"COLOUR": "green"},
    )  # fmt: skip
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(made))
    arguments = [sys.executable, "-c", JOB, str(tmp_path / "job.pickle")]
    return lambda: spawn(arguments, stdin=subprocess.DEVNULL)


def test_a_second_job_of_a_cell_waits(
    job: Callable[[], subprocess.Popen[bytes]],
    cell: CellCommand,
    tmp_path: Path,
    until: Callable[..., None],
) -> None:
    first = job()
    begun = f"in {tmp_path} green 3\n"
    until(lambda: begun in cell.log.read_text())
    second = job()
    time.sleep(1)
    assert second.poll() is None and cell.log.read_text().count(begun) == 1
    (tmp_path / "go").touch()
    assert (first.wait(), second.wait()) == (0, 0)
    assert cell.log.read_text().count(begun) == 2
    told = json.loads((cell.log.parent / "job" / "ended.json").read_text())
    assert told["code"] == 0 and told["log_start"] == len("before\nmtl: no\n" + begun)


def test_a_cell_does_not_outlive_its_job(
    job: Callable[[], subprocess.Popen[bytes]], cell: CellCommand, until: Callable[..., None]
) -> None:
    process = job()
    until(lambda: "green" in cell.log.read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: "stopped" in cell.log.read_text())
    assert not (cell.log.parent / "job" / "ended.json").exists()


def test_the_study_asks_and_a_cluster_warns(
    job: Callable[[], subprocess.Popen[bytes]], cell: CellCommand, until: Callable[..., None]
) -> None:
    process = job()
    until(lambda: "green" in cell.log.read_text())
    table = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True,
                           text=True, check=True).stdout  # fmt: skip
    os.kill(int(table), signal.SIGUSR2)  # of which a cell would die
    (cell.log.parent / "job" / "request").write_text("stop")
    assert process.wait() == 130
    assert "stopped" in cell.log.read_text()
