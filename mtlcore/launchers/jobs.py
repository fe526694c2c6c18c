"""Cells as jobs: what launchers share that hand cells to a queue or a cluster.

A job is a small program of mtlcore, `CellJob.run`, on whatever machine the cluster chooses. It
keeps the cell's process: it locks the cell, tells it to stop, and writes how it ended. Study and
job speak through files in the folder `job` of the cell's directory, so that any machine that sees
the study's directory may go on with the study.
"""

from __future__ import annotations

import abc
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import attrs

from mtlcore.errors import Interrupted, MtlError, describe
from mtlcore.launchers.contract import CellCommand, CellExit, Launcher
from mtlcore.storage import written_whole
from mtlcore.system import WARNING, locked, signals_blocked

__all__ = ["CellJob", "JobLauncher", "JobState"]

_STOP, _STOP_AT_ONCE = "stop", "stop at once"


@final
@attrs.frozen(kw_only=True)
class JobState:
    """What a cluster says of a job.

    Args:
        phase: "waiting" for its turn; "running", or about to; "ended"; "lost" with its machine, or
            taken from it in favour of another job.
        reason: What became of it, for people.
    """

    phase: Literal["waiting", "running", "ended", "lost"]
    reason: str = ""


class _JobFiles:
    """The files through which a study and the job of a cell speak.

    Args:
        directory: The cell's directory.
    """

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "job"
        self.lock = self.folder / "lock"
        self._request = self.folder / "request"
        self._identity = self.folder / "id"
        self._ended = self.folder / "ended.json"

    def prepare(self) -> None:
        """Make the folder, with the files of a job that has not begun."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The file is always there: network file systems look anew at files that are opened, while
        # they may remember for a minute that there was none.
        self.request("")
        self._ended.unlink(missing_ok=True)
        self._identity.unlink(missing_ok=True)

    def request(self, words: str) -> None:
        """Ask the job for something."""
        with written_whole(self._request) as partial:
            partial.write_text(words)

    @property
    def requested(self) -> str:
        """What the job is asked for: nothing, to stop, or to stop at once."""
        return self._request.read_text()

    @property
    def identity(self) -> str | None:
        """What the cluster calls the job; None where it was not noted."""
        return self._identity.read_text() if self._identity.exists() else None

    @identity.setter
    def identity(self, value: str) -> None:
        with written_whole(self._identity) as partial:
            partial.write_text(value)

    @property
    def ended(self) -> dict[str, Any] | None:
        """How the cell ended; None before."""
        try:
            found: dict[str, Any] = json.loads(self._ended.read_text())
        except FileNotFoundError:
            return None
        return found

    @ended.setter
    def ended(self, value: dict[str, Any] | None) -> None:
        if value is None:
            self._ended.unlink(missing_ok=True)
            return
        with written_whole(self._ended) as partial:
            partial.write_text(json.dumps(value))


@final
@attrs.define(kw_only=True, slots=False)
class CellJob:
    """What a cluster runs for a cell.

    Args:
        command: The cell's command.
        directory: In which it is run.
        environment: Laid over that of the job's process.
    """

    command: CellCommand
    directory: str
    environment: Mapping[str, str] = attrs.field(factory=dict)
    _process: subprocess.Popen[bytes] | None = attrs.field(default=None, init=False)

    def run(self) -> int:
        """Run the cell to its end and write how it ended; return its exit status.

        If another job of the cell is still at work, wait for its end first.
        """
        files = _JobFiles(self.command.log.parent)
        # The cell holds the lock too: it may live a little longer than this process.
        with locked(files.lock, lambda: None) as lock:
            files.ended = None
            began = time.monotonic()
            # A cluster may warn all processes of a job; the cell, which would die of it, is asked
            # by SIGTERM instead.
            with self.command.log.open("ab") as output, signals_blocked(WARNING):
                log_start = output.seek(0, os.SEEK_END)
                self._process = subprocess.Popen(
                    self.command.arguments,
                    cwd=self.directory,
                    # It closes when this process dies: the cell stops then.
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={
                        **os.environ,
                        **self.environment,
                        "OMP_NUM_THREADS": str(self.command.threads),
                    },
                    pass_fds=(lock,),
                )
            code = _kept(self._process, files)
            seconds = time.monotonic() - began
            files.ended = {"code": code, "seconds": seconds, "log_start": log_start}
        return code

    def interrupt(self) -> CellJob:
        """Let the cell save and end; return the job that goes on with it.

        For signal handlers: `run` does not go on.
        """
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        return attrs.evolve(self)


def _kept(process: subprocess.Popen[bytes], files: _JobFiles) -> int:
    """Wait for a cell's end and pass on what the study asks for; return the exit status."""
    passed_on = 0
    while True:
        try:
            return process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            asked = ("", _STOP, _STOP_AT_ONCE).index(files.requested)
            for _ in range(asked - passed_on):
                process.terminate()
            passed_on = max(passed_on, asked)


class JobLauncher(Launcher):
    """A launcher whose cells are jobs of a cluster, `JobLauncher(folder, lock, **settings)`.

    The cluster must see the study's directory under the same path, on a file system whose locks
    (`flock`) hold between its machines.

    Attributes:
        patience: Seconds after which a job that has gone without a word is believed to have ended:
            a network's file system may show its last file so late.
    """

    outlives = True
    holds_input = True
    poll_seconds = 0.5
    patience: float = 30.0

    def __init__(self, folder: Path, lock: int) -> None:
        self._running: dict[str, _Running] = {}

    @abc.abstractmethod
    def submit(self, job: CellJob, name: str) -> str:
        """Hand a job over; return what the cluster calls it.

        Args:
            job: Its `run` is to be called, once, in a process of the cluster.
            name: Unique to the cell: `find` is asked for it.

        Raises:
            MtlError: The cluster does not take it.
        """

    @abc.abstractmethod
    def find(self, name: str, identity: str | None) -> str | None:
        """Return what the cluster calls a job that waits or runs; None where there is none.

        Args:
            name: As `submit` was told.
            identity: What `submit` returned; None where that was not noted.

        Raises:
            MtlError: The cluster does not answer.
        """

    @abc.abstractmethod
    def state(self, identity: str) -> JobState:
        """Return what the cluster says of a job."""

    @abc.abstractmethod
    def cancel(self, identity: str) -> None:
        """Take a job back that waits."""

    def start(self, cell: CellCommand) -> None:
        """Submit the cell, or take up its job of an earlier start."""
        files = _JobFiles(cell.log.parent)
        name = _job_name(cell)
        identity = self.find(name, files.identity)
        if identity is None:
            try:
                files.prepare()
            except OSError as error:
                raise MtlError(f"{files.folder}: cannot be written ({describe(error)})") from error
            identity = self.submit(CellJob(command=cell, directory=os.getcwd()), name)
        files.identity = identity
        self._running[cell.location] = _Running(
            cell=cell, files=files, identity=identity, was_asked=files.requested != ""
        )

    def poll(self) -> Sequence[CellExit]:
        """Return the cells whose jobs have told their end, or have gone without a word."""
        exits = [found for one in self._running.values() if (found := self._exit_of(one))]
        for cell_exit in exits:
            del self._running[cell_exit.location]
        return exits

    def stop(self) -> None:
        """Ask the jobs to stop their cells; take those back that wait."""
        for one in self._running.values():
            one.asked = True
            one.files.request(_STOP)

    def stop_at_once(self) -> None:
        """Ask the jobs a second time."""
        for one in self._running.values():
            one.files.request(_STOP_AT_ONCE)

    def _exit_of(self, one: _Running) -> CellExit | None:
        if told := one.files.ended:
            # What stops without having been asked to may have lost its place, and gets another.
            unasked = told["code"] == Interrupted.exit_code and not one.asked
            state = self.state(one.identity) if unasked else JobState(phase="ended")
            if state.phase in ("waiting", "running"):
                return None
            return one.exit_told(told, lost=unasked and (one.was_asked or state.phase == "lost"))
        state = self.state(one.identity)
        if state.phase == "waiting" and one.asked:
            self.cancel(one.identity)
            return one.exit_without_a_word("taken back before it began", lost=False)
        if state.phase in ("waiting", "running"):
            one.gone_since = None
            return None
        if one.gone_since is None:
            one.gone_since = time.monotonic()
        if time.monotonic() - one.gone_since < self.patience or one.files.ended:
            return None  # it may have told its end while the cluster was asked
        return one.exit_without_a_word(state.reason, lost=state.phase == "lost")


@attrs.define(kw_only=True)
class _Running:
    cell: CellCommand
    files: _JobFiles
    identity: str
    was_asked: bool  # to stop, by an earlier start of the study: then it is begun again
    asked: bool = False
    gone_since: float | None = None
    began: float = attrs.field(factory=time.monotonic)

    def exit_told(self, told: dict[str, Any], lost: bool) -> CellExit:
        with self.cell.log.open("rb") as log:
            log.seek(told["log_start"])
            output = log.read().decode("utf-8", "replace")
        return CellExit(
            location=self.cell.location,
            code=told["code"],
            seconds=told["seconds"],
            output=output,
            lost=lost,
        )

    def exit_without_a_word(self, reason: str, lost: bool) -> CellExit:
        return CellExit(
            location=self.cell.location,
            code=Interrupted.exit_code if self.asked else 1,
            seconds=time.monotonic() - self.began,
            output=f"mtl: its job {self.identity}: {reason}",
            lost=lost,
        )


def _job_name(cell: CellCommand) -> str:
    """Return a name that no other cell has, of this study or another one."""
    place = str(cell.log.parent.resolve())
    words = "-".join(Path(cell.location).parts[1:]) or cell.location
    return f"mtl-{words}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
