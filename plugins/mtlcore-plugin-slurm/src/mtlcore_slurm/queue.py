"""Where a job is: in Slurm's queue, or among the processes of this machine.

Slurm is asked by `squeue`, which needs no accounting database; it remembers ended jobs for some
minutes.
"""

from __future__ import annotations

import abc
import atexit
import logging
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, final

from mtlcore.errors import MtlError
from mtlcore.launchers import JobState

if TYPE_CHECKING:
    from submitit import Job

_LOG = logging.getLogger(__name__)

_LOST = {
    "BOOT_FAIL": "its machine did not start",
    "NODE_FAIL": "its machine failed",
    "PREEMPTED": "it gave way to another job",
}
_ENDED = {
    "CANCELLED": "it was cancelled",
    "COMPLETED": "it ended without a result",
    "DEADLINE": "its deadline came",
    "FAILED": "it failed before the run began",
    "OUT_OF_MEMORY": "it was killed for want of memory; ask for more (launcher.mem)",
    "TIMEOUT": "its time was up; ask for more (launcher.time)",
}


class Queue(abc.ABC):
    """Tells where jobs are."""

    @abc.abstractmethod
    def submitted(self, job: Job[Any]) -> None:
        """Note that a job was submitted."""

    @abc.abstractmethod
    def find(self, name: str, identity: str | None) -> str | None:
        """Return the identity of a job that waits or runs; None where there is none."""

    @abc.abstractmethod
    def state(self, identity: str) -> JobState:
        """Return what is known of a job."""

    @abc.abstractmethod
    def cancel(self, identity: str) -> None:
        """Take a job back that waits."""


@final
class SlurmQueue(Queue):
    """Slurm's queue, looked at not more often than it bears.

    Args:
        seconds: Between two looks.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._looked_at: float | None = None
        self._answers = True
        self._jobs: dict[str, tuple[str, str]] = {}  # identity -> name, state

    def find(self, name: str, identity: str | None) -> str | None:
        """Look for the name: a study may have died before it noted the identity."""
        self._jobs = _listed()
        self._looked_at = time.monotonic()
        for found, (other, state) in self._jobs.items():
            if other == name and state not in _LOST | _ENDED:
                return found
        return None

    def state(self, identity: str) -> JobState:
        """Translate Slurm's state; while it does not answer, the job is where it was."""
        if self._looked_at is None or time.monotonic() - self._looked_at >= self._seconds:
            try:
                self._jobs = _listed()
                self._looked_at, self._answers = time.monotonic(), True
            except MtlError as error:  # a controller that restarts does not answer: jobs run on
                if self._answers:
                    _LOG.warning("%s; jobs count as they were until Slurm answers", error)
                self._answers = False
        if identity not in self._jobs:
            looked = self._looked_at is not None
            return JobState(phase="lost", reason="Slurm knows it no more") if looked else _RUNS
        _, state = self._jobs[identity]
        if state == "PENDING":
            return JobState(phase="waiting")
        if state in _LOST:
            return JobState(phase="lost", reason=_LOST[state])
        return JobState(phase="ended", reason=_ENDED[state]) if state in _ENDED else _RUNS

    def submitted(self, job: Job[Any]) -> None:
        """Forget what was seen before."""
        self._looked_at = None

    def cancel(self, identity: str) -> None:
        """Cancel the job."""
        _run("scancel", identity)


_RUNS = JobState(phase="running")


def _listed() -> dict[str, tuple[str, str]]:
    """Return identity -> name and state of this user's jobs, those that ended lately too."""
    output = _run(
        "squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%A|%T|%j"
    )
    rows = [line.split("|", 2) for line in output.splitlines() if line.count("|") >= 2]
    return {identity: (name, state) for identity, state, name in rows}


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise MtlError(
            f"{command[0]}: there is no such program: start the study where sbatch is at hand, or "
            'set launcher.executor = "local"'
        ) from error
    if done.returncode:
        raise MtlError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


# Identity -> job. They are kept to the end: their processes may outlive this one, and nobody is to
# warn then that they still run.
_STARTED_HERE: dict[str, Job[Any]] = {}
# Before the interpreter is taken apart: jobs of submitit use modules when they are deleted.
atexit.register(_STARTED_HERE.clear)


@final
class ProcessTable(Queue):
    """The processes of this machine, for submitit's local executor.

    Args:
        folder: A path that the command of every job has.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def submitted(self, job: Job[Any]) -> None:
        """Keep the job, which holds its process."""
        _STARTED_HERE[str(job.job_id)] = job

    def find(self, name: str, identity: str | None) -> str | None:
        """Return the noted identity if that process is still a job of this study."""
        return identity if identity is not None and self._lives(identity) else None

    def state(self, identity: str) -> JobState:
        """Return whether the process lives."""
        ended = JobState(phase="ended", reason="it ended without a result")
        return _RUNS if self._lives(identity) else ended

    def cancel(self, identity: str) -> None:
        """End the process; it never waits."""
        os.kill(int(identity), signal.SIGTERM)

    def _lives(self, identity: str) -> bool:
        if (job := _STARTED_HERE.get(identity)) is not None:
            return not job.done()
        # Of an earlier start. Another process may have its number by now.
        shown = subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", identity],
            capture_output=True,
            text=True,
            check=False,
        )
        return self._folder in shown.stdout
