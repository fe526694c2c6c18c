"""The contract of loggers, told what happens in a run, and what protects a run from them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import attrs

from mtlcore.errors import UsageError, outline
from mtlcore.storage.run_files import Record


@final
@attrs.frozen(kw_only=True)
class RunInfo:
    """What a logger is told when a run begins or goes on.

    Args:
        id: The run's identity: the same whenever the run is resumed, and no other run has it.
        location: Directory or URL of the run.
        directory: The local directory that the run writes; that of a run at a URL goes away at its
            end.
        resumed: Whether the run goes on from a checkpoint.
        step: How many steps are done. Lines of later steps may have been recorded before the run
            was interrupted: they come again.
        config: The whole configuration, as `config.toml` has it.
        origins: Path of a setting -> where its value comes from.
        about: How the run came about, as `run.json` tells.
    """

    id: str
    location: str
    directory: Path
    resumed: bool
    step: int
    config: Mapping[str, Any]
    origins: Mapping[str, str]
    about: Mapping[str, Any]


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
    run. A step waits for `record`: what takes long, such as a network, belongs into a thread.
    Nothing that is given may be changed.
    """

    @abc.abstractmethod
    def start(self, run: RunInfo) -> None:
        """Begin with a run, or go on with one that was interrupted."""

    @abc.abstractmethod
    def record(self, lines: Sequence[Record]) -> None:
        """Take in lines of `metrics.jsonl`, as they are written.

        Args:
            lines: Of one step or evaluation. Values may be NaN or infinite.
        """

    @abc.abstractmethod
    def finish(self, outcome: RunOutcome) -> None:
        """End with the run; called once, whatever ended it, unless it was killed."""


@final
class Loggers:
    """The loggers of a run, none of which can harm it: one that raises is left alone from then on.

    Args:
        warn: Called with a line about each one that raises.
    """

    def __init__(self, warn: Callable[[str], None] | None = None) -> None:
        self._warn = warn
        self._loggers: list[tuple[str, RunLogger]] = []

    def add(self, name: str, make: Callable[[], RunLogger]) -> None:
        """Make one more logger.

        Raises:
            UsageError: It refuses a setting.
        """
        try:
            self._loggers.append((name, make()))
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            self._leave_alone(name, error)

    def start(self, run: RunInfo) -> None:
        """Tell all of them that a run begins or goes on."""
        self._tell(lambda logger: logger.start(run))

    def record(self, lines: Sequence[Record]) -> None:
        """Pass on lines of `metrics.jsonl`."""
        self._tell(lambda logger: logger.record(lines))

    def finish(self, outcome: RunOutcome) -> None:
        """Tell all of them that the run ends."""
        self._tell(lambda logger: logger.finish(outcome))

    def _tell(self, call: Callable[[RunLogger], None]) -> None:
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
                "goes on"
            )
