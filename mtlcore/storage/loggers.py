"""The contract of loggers, told what happens in a run, and what protects a run from them."""

from __future__ import annotations

import abc
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import attrs

from mtlcore.errors import MtlError, UsageError, outline
from mtlcore.storage.run_files import Record, RunFiles


@final
@attrs.frozen(kw_only=True)
class RunInfo:
    """What a logger is told when a run begins or goes on, or is sent after its end (`mtl log`).

    Args:
        id: The run's identity: the same whenever the run is resumed, and no other run has it.
        name: What people call the run: the last part of its location; of a cell of a study,
            variant, seed and tasks.
        group: Name of the study whose cell the run is; None where it is none.
        location: Directory or URL of the run.
        directory: The local directory that the run writes; that of a run at a URL goes away at its
            end. What a logger writes there is uploaded with the rest.
        resumed: Whether there may have been lines before. Whoever is told them now may not have
            been told then.
        step: How many steps are done. Lines of later steps may have been recorded before the run
            was interrupted: they come again.
        lines: How many lines of `metrics.jsonl` in the directory are kept. Those that come next
            follow them; whatever was recorded behind them before comes again.
        began: When the run would have begun, had it never paused, in seconds since the epoch: a
            line was recorded `seconds` later.
        config: The whole configuration, as `config.toml` has it.
        origins: Path of a setting -> where its value comes from.
        about: How the run came about, as `run.json` tells.
    """

    id: str
    name: str
    group: str | None = None
    location: str
    directory: Path
    resumed: bool
    step: int
    lines: int
    began: float
    config: Mapping[str, Any]
    origins: Mapping[str, str]
    about: Mapping[str, Any]

    def kept(self) -> tuple[Record, ...]:
        """Return the lines that are kept, for a logger that has not been told them.

        Raises:
            MtlError: `metrics.jsonl` is damaged.
        """
        return RunFiles(str(self.directory)).records[: self.lines]


@final
@attrs.frozen(kw_only=True)
class RunOutcome:
    """What a logger is told when a run ends.

    Args:
        status: How it ended. A run that was killed tells nothing.
        reason: Why it did not finish; None where it did.
        summary: The results, as `summary.json` has them; None where it did not finish.
        pictures: The files of `report/` that are pictures; none where it did not finish.
    """

    status: Literal["finished", "interrupted", "pruned", "failed"]
    reason: str | None = None
    summary: Mapping[str, Any] | None = None
    pictures: tuple[Path, ...] = ()


class RunLogger(abc.ABC):
    """What is told of a run as it happens, made as `RunLogger(**settings)`.

    Making one opens nothing: `start` does. A logger that raises is left alone for the rest of the
    run, and whoever wants all of it in the end sends the run again: `mtl log RUN --to NAME`.
    Nothing that is given may be changed.

    Attributes:
        in_background: Whether it is called in a thread of its own, the same for all calls, so that
            no step waits for it. What needs a network sets it. Where it falls behind, lines of
            several steps come at once.
    """

    in_background: ClassVar[bool] = False

    @abc.abstractmethod
    def start(self, run: RunInfo) -> None:
        """Begin with a run, or go on with one that was interrupted.

        What the logger has of the run already is replaced or completed, never doubled: the same
        lines come again where a killed run goes on, and where `mtl log` sends it.
        """

    @abc.abstractmethod
    def record(self, lines: Sequence[Record]) -> None:
        """Take in lines of `metrics.jsonl`, as they are written.

        Args:
            lines: In order. Values may be NaN or infinite.
        """

    @abc.abstractmethod
    def finish(self, outcome: RunOutcome) -> None:
        """End with the run; called once, whatever ended it, unless it was killed."""


def tag_of(line: Record) -> str:
    """Return the name by which a tracker knows a line's value, such as `val/depth/rmse`."""
    return "/".join(filter(None, (line["split"], line["task"], line["metric"])))


def result_values(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a summary by name, such as `final/val/depth/rmse`.

    Args:
        summary: As `summary.json` has it; a metric without a value is left out.
    """
    tables = {f"final/{split}": table for split, table in summary.get("final", {}).items()}
    tables["best/val"] = (summary.get("best") or {}).get("val", {})
    return {
        f"{where}/{task}/{metric}": value
        for where, table in tables.items()
        for task, values in table.items()
        for metric, value in values.items()
        if value is not None and not math.isnan(value)
    }


@final
class Loggers:
    """The loggers of a run, none of which can harm it: one that raises is left alone from then on.

    Args:
        warn: Called with a line about each one that raises.
        location: Directory or URL of the run, for messages.
        patience: At most so many seconds the end of a run waits for a logger that works in the
            background.
    """

    def __init__(
        self,
        warn: Callable[[str], None] | None = None,
        location: str = "RUN",
        patience: float = 30.0,
    ) -> None:
        self._warn, self._location, self._patience = warn, location, patience
        self._loggers: list[tuple[str, RunLogger | _InBackground]] = []

    def add(self, name: str, make: Callable[[], RunLogger]) -> None:
        """Make one more logger.

        Raises:
            UsageError: It refuses a setting.
        """
        try:
            logger = make()
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            self._leave_alone(name, error)
            return
        there = _InBackground(name, logger) if logger.in_background else logger
        self._loggers.append((name, there))

    def start(self, run: RunInfo) -> None:
        """Tell all of them that a run begins or goes on."""
        self._tell(lambda logger: logger.start(run))

    def record(self, lines: Sequence[Record]) -> None:
        """Pass on lines of `metrics.jsonl`."""
        self._tell(lambda logger: logger.record(lines))

    def finish(self, outcome: RunOutcome, *, at_once: bool = False) -> None:
        """Tell all of them that the run ends, and wait for those in the background.

        Args:
            outcome: How it ended.
            at_once: Whether somebody asked to stop at once: then nobody is waited for.
        """
        self._tell(lambda logger: logger.finish(outcome))
        deadline = time.monotonic() + (0 if at_once else self._patience)
        self._tell(lambda logger: self._wait(logger, deadline))

    def _wait(self, logger: RunLogger | _InBackground, deadline: float) -> None:
        if not isinstance(logger, _InBackground) or logger.ended_by(min(deadline, _soon())):
            return
        left = deadline - time.monotonic()
        if self._warn is not None and left > 0:
            self._warn(
                f"loggers: {logger.name} is still at work; waiting up to {left:.0f} s for it"
            )
        if not logger.ended_by(deadline):
            raise MtlError("it has not taken in everything")

    def _tell(self, call: Callable[[RunLogger | _InBackground], None]) -> None:
        for entry in tuple(self._loggers):
            name, logger = entry
            try:
                call(logger)
            except (Exception, SystemExit) as error:
                self._loggers.remove(entry)
                self._leave_alone(name, error)

    def _leave_alone(self, name: str, error: BaseException) -> None:
        if self._warn is not None:
            self._warn(
                f"loggers: {name} failed ({outline(error)}); it is told nothing more, and the run "
                f"goes on. mtl log {self._location} --to {name} sends all of it later"
            )


def _soon() -> float:
    """Return the time until which nobody needs to be told what is waited for."""
    return time.monotonic() + 2


@final
class _InBackground:
    """A logger in a thread of its own. What it raises there is raised here by the next call.

    Args:
        name: The logger's name.
        logger: The logger.
    """

    #: So many calls may wait for a slow logger: of a long run, hours of recording.
    _MOST_WAITING = 2000

    def __init__(self, name: str, logger: RunLogger) -> None:
        self.name, self._logger = name, logger
        # Lines, and None behind the last ones.
        self._calls: queue.Queue[Sequence[Record] | None] = queue.Queue(self._MOST_WAITING)
        self._error: BaseException | None = None
        self._run: RunInfo
        self._outcome: RunOutcome
        # A daemon: a program does not wait for it at its end.
        self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)

    def start(self, run: RunInfo) -> None:
        """Begin with a run, in the thread."""
        self._run = run
        self._thread.start()

    def record(self, lines: Sequence[Record]) -> None:
        """Let lines be recorded, in the thread."""
        self._put(lines)

    def finish(self, outcome: RunOutcome) -> None:
        """Let the logger end with the run, in the thread."""
        self._outcome = outcome
        self._put(None)

    def ended_by(self, deadline: float) -> bool:
        """Wait until a time of the monotonic clock; return whether everything was taken in."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._raise()
        return not self._thread.is_alive()

    def _put(self, call: Sequence[Record] | None) -> None:
        self._raise()
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            raise MtlError(f"it is too slow: {self._MOST_WAITING} calls wait for it") from None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            self._logger.start(self._run)
            while lines := self._waiting_lines():
                self._logger.record(lines)
            self._logger.finish(self._outcome)
        except (Exception, SystemExit) as error:
            self._error = error

    def _waiting_lines(self) -> Sequence[Record]:
        """Wait for lines; return all that are there, none at the end."""
        lines: list[Record] = []
        while not lines or not self._calls.empty():
            call = self._calls.get()
            if call is None:
                self._calls.put(None)  # for the next time
                break
            lines += call
        return lines
