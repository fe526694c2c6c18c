"""What holds for every logger of runs."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from mtlcore.display import Display
from mtlcore.storage import (
    METRICS,
    Loggers,
    Record,
    RunInfo,
    RunLogger,
    RunOutcome,
    without_nan,
)
from mtlcore.testing.base import global_stream_untouched, same

#: The settings of a run of two epochs, which takes a second or two.
TINY_RUN: Mapping[str, Any] = {
    "tasks": ["segmentation", "depth"],
    "data": {"train": 6, "val": 3, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"epochs": 2, "batch_size": 3, "evaluate_every": 1},
    "device": "cpu",
}


@final
class NotesDisplay(Display):
    """Shows nothing, and keeps what a run notes or warns of.

    Attributes:
        notes: In order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def _begin(self, title: str) -> None: ...

    def note(self, message: str) -> None:
        """Keep a message."""
        self.notes.append(message)

    def epoch(self, epoch: int, epochs: int, losses: Any, metrics: Any) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class LoggerContract:
    """Subclass it, write `make`, and pytest checks the logger."""

    def make(self, folder: Path) -> RunLogger:
        """Return a logger whose files, if it writes any, lie in this folder."""
        raise NotImplementedError

    def arrived(self, folder: Path) -> Sequence[Mapping[str, Any]] | None:
        """Return the lines that have arrived, in any order; None: nobody can tell."""
        return None

    def test_making_one_opens_nothing(self) -> None:
        """Otherwise a configuration that is only looked at leaves files and connections behind."""
        with self._folder() as folder:
            self.make(folder)
            assert not list(folder.iterdir()), "making it writes files"

    def test_a_whole_run(self) -> None:
        """Otherwise it is left alone with a note, and a run has no log."""
        with self._folder() as folder:
            logger = self.make(folder)
            _begin(logger, folder)
            logger.record(told_lines(1))
            logger.record(told_lines(2))
            picture = folder / "report" / "curves.svg"
            picture.parent.mkdir()
            picture.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
            summary = {"final": {"val": {"depth": {"loss": 0.5}}}, "best": None, "steps": 2}
            logger.finish(RunOutcome(status="finished", summary=summary, pictures=(picture,)))
            self._check_lines(folder, [*told_lines(1), *told_lines(2)])

    def test_a_run_that_goes_on(self) -> None:
        """Otherwise what was logged before an interruption is lost, or a resumed run is not."""
        with self._folder() as folder:
            first = self.make(folder)
            _begin(first, folder)
            first.record(told_lines(1))
            first.finish(RunOutcome(status="interrupted", reason="stopped by SIGINT"))
            second = self.make(folder)
            _begin(second, folder, resumed=True)
            second.record(told_lines(2))
            second.finish(RunOutcome(status="finished", summary={}))
            self._check_lines(folder, [*told_lines(1), *told_lines(2)])

    def test_a_killed_run_keeps_its_lines(self) -> None:
        """Otherwise the log ends long before the run does, or a killed run cannot go on."""
        with self._folder() as folder:
            killed = self.make(folder)
            _begin(killed, folder)
            killed.record(told_lines(1))
            self._check_lines(folder, told_lines(1))
            again = self.make(folder)
            _begin(again, folder, resumed=True)
            again.finish(RunOutcome(status="failed", reason="no step had a finite loss"))
            self._check_lines(folder, told_lines(1))

    def test_lines_that_come_again(self) -> None:
        """Otherwise a run that was killed, and went on, has values twice or loses some."""
        with self._folder() as folder:
            killed = self.make(folder)
            _begin(killed, folder)
            killed.record(told_lines(1))
            killed.record(told_lines(2))
            again = self.make(folder)
            _begin(again, folder, resumed=True)
            again.record(told_lines(2))
            again.record(told_lines(3))
            again.finish(RunOutcome(status="finished", summary={}))
            self._check_lines(folder, [*told_lines(1), *told_lines(2), *told_lines(3)])

    def test_a_run_that_is_sent_again(self) -> None:
        """Otherwise `mtl log` doubles a run of which the logger has a part."""
        with self._folder() as folder:
            first = self.make(folder)
            _begin(first, folder)
            first.record(told_lines(1))
            first.finish(RunOutcome(status="interrupted", reason="stopped by SIGINT"))
            again = self.make(folder)
            again.start(told_run(folder, resumed=True, step=0))
            again.record(told_lines(1))
            again.record(told_lines(2))
            again.finish(RunOutcome(status="finished", summary={"steps": 2}))
            self._check_lines(folder, [*told_lines(1), *told_lines(2)])

    def test_in_a_run(self) -> None:
        """Otherwise it fails in the thread in which a run calls it, or with lines of many steps."""
        notes: list[str] = []
        with self._folder() as folder:
            loggers = Loggers(notes.append)
            loggers.add("the logger", lambda: self.make(folder))
            loggers.start(told_run(folder, group="a study"))
            for step in range(1, 4):
                loggers.record(told_lines(step))
            loggers.finish(RunOutcome(status="finished", summary={"steps": 3}))
            assert not [note for note in notes if "failed" in note], notes
            self._check_lines(folder, [*told_lines(1), *told_lines(2), *told_lines(3)])

    def test_values_that_are_no_numbers(self) -> None:
        """Otherwise a metric without a valid label, or a loss that diverges, ends the log."""
        with self._folder() as folder:
            logger = self.make(folder)
            _begin(logger, folder)
            lines = [{**line, "metric": f"{line['metric']}_{value}", "value": value}
                     for line in told_lines(1)
                     for value in (math.nan, math.inf, -math.inf)]  # fmt: skip
            logger.record(lines)
            logger.finish(RunOutcome(status="failed", reason="diverged"))
            self._check_lines(folder, lines)

    def test_what_it_is_told_stays(self) -> None:
        """Otherwise another logger, or the run itself, is told something else."""
        with self._folder() as folder:
            info, lines = told_run(folder), told_lines(1)
            outcome = RunOutcome(status="finished", summary={"final": {"val": {}}, "steps": 1})
            before = copy.deepcopy((info, lines, outcome))
            logger = self.make(folder)
            logger.start(info)
            logger.record(lines)
            logger.finish(outcome)
            assert before == (info, lines, outcome), "it changes what it is given"

    def test_random_numbers_are_left_alone(self) -> None:
        """Otherwise a run with the logger learns something else than a run without it."""
        with self._folder() as folder, global_stream_untouched("the logger"):
            logger = self.make(folder)
            _begin(logger, folder)
            logger.record(told_lines(1))
            logger.finish(RunOutcome(status="finished", summary={}))

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="mtl-contract-") as place:
            yield Path(place)

    def _check_lines(self, folder: Path, lines: Sequence[Record]) -> None:
        arrived = self.arrived(folder)
        if arrived is None:
            return
        assert same(_in_order(arrived), _in_order(lines)), (
            f"{len(lines)} lines were recorded, and {len(arrived)} others arrived: {arrived}"
        )


def _in_order(lines: Sequence[Record]) -> list[Any]:
    """Return lines by step, split, task and metric: trackers keep no other order."""
    keys = ("step", "split", "task", "metric")
    plain = [without_nan(line) for line in lines]
    return sorted(plain, key=lambda line: [str(line[key]) for key in keys])


def _begin(logger: RunLogger, folder: Path, *, resumed: bool = False) -> None:
    """Begin with a run, or let it go on after step 1."""
    if resumed:
        kept = (json.dumps(line) + "\n" for line in told_lines(1))
        (folder / METRICS).write_text("".join(kept))
    logger.start(told_run(folder, resumed=resumed, step=1 if resumed else 0))


def told_run(
    folder: Path, *, resumed: bool = False, step: int = 0, group: str | None = None
) -> RunInfo:
    """Return what a logger may be told of a run in a folder.

    Args:
        folder: The run's directory.
        resumed: Whether there may have been lines before.
        step: How many steps are done; those of `told_lines` are kept.
        group: Name of the run's study.
    """
    return RunInfo(
        id="0123456789abcdef",
        name="default-1",
        group=group,
        location=str(folder),
        directory=folder,
        resumed=resumed,
        step=step,
        lines=len(told_lines(1)) * step,
        began=1.7e9,
        config={"method": "default", "tasks": ["depth"], "optimizer": {"name": "adam", "lr": 0.1}},
        origins={"method": "core", "optimizer.lr": "--set"},
        about={"argv": ["mtl", "run"], "mtlcore": "0.1.0", "seed": 0},
    )


def told_lines(step: int) -> list[dict[str, Any]]:
    """Return lines of `metrics.jsonl` of one step, as a logger may be told them."""
    common = {"step": step, "epoch": step, "seconds": 0.5 * step}
    return [
        {**common, "split": "train", "task": "depth", "metric": "loss", "value": 0.7},
        {**common, "split": "train", "task": None, "metric": "gradient_norm", "value": 2.0},
        {**common, "split": "val", "task": "depth", "metric": "rmse", "value": 1.5},
    ]
