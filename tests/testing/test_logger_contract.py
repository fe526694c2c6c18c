"""Loggers that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import json
import signal

import pytest
import torch

from mtlcore.storage import RunLogger, without_nan
from mtlcore.testing import LoggerContract


class ToFile(RunLogger):
    """Appends to a file, as a good one may."""

    def __init__(self, folder):
        self.file = folder / "lines"

    def start(self, run):
        lines = self.file.read_text().splitlines(True) if self.file.exists() else []
        self.file.write_text("".join(lines[: run.lines]))

    def record(self, lines):
        with self.file.open("a") as file:
            file.writelines(json.dumps(without_nan(line)) + "\n" for line in lines)

    def finish(self, outcome):
        pass


class OpensTooEarly(ToFile):
    def __init__(self, folder):
        super().__init__(folder)
        self.file.touch()


class NeedsASummary(ToFile):
    def finish(self, outcome):
        self.best = outcome.summary["best"]["epoch"]


class StartsOver(ToFile):
    def start(self, run):
        self.file.write_text("")


class Doubles(ToFile):
    def start(self, run):
        self.file.touch()


class KeepsWhatIsSentAgain(ToFile):
    def start(self, run):
        if run.lines:
            super().start(run)


class WantsSignals(ToFile):
    in_background = True

    def record(self, lines):
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        super().record(lines)


class KeepsLinesToTheEnd(ToFile):
    def start(self, run):
        super().start(run)
        self.lines = []

    def record(self, lines):
        self.lines += lines

    def finish(self, outcome):
        super().record(self.lines)


class StrictNumbers(ToFile):
    def record(self, lines):
        [json.dumps(line, allow_nan=False) for line in lines]
        super().record(lines)


class RenamesKeys(ToFile):
    def record(self, lines):
        super().record(lines)
        for line in lines:
            line["loss"] = line.pop("value")


class DrawsItsColour(ToFile):
    def start(self, run):
        super().start(run)
        self.colour = torch.rand(3)


LOGGERS = [
    (OpensTooEarly, "test_making_one_opens_nothing", "writes files"),
    (NeedsASummary, "test_a_whole_run", "NoneType"),
    (StartsOver, "test_a_run_that_goes_on", "3 others arrived"),
    (KeepsLinesToTheEnd, "test_a_killed_run_keeps_its_lines", "0 others arrived"),
    (Doubles, "test_lines_that_come_again", "9 lines were recorded, and 12 others"),
    (KeepsWhatIsSentAgain, "test_a_run_that_is_sent_again", "9 others arrived"),
    (WantsSignals, "test_in_a_run", "main thread"),
    (StrictNumbers, "test_values_that_are_no_numbers", "JSON compliant"),
    (RenamesKeys, "test_what_it_is_told_stays", "changes what it is given"),
    (DrawsItsColour, "test_random_numbers_are_left_alone", "global generator"),
]


def arrived(self, folder):
    return [json.loads(line) for line in (folder / "lines").read_text().splitlines()]


@pytest.mark.parametrize(("component", "test", "message"), LOGGERS)
def test_loggers(component, test, message, held_to, catches):
    catches(held_to(LoggerContract, component, arrived=arrived), test, message)


def test_a_good_logger_passes(held_to, passes):
    passes(held_to(LoggerContract, ToFile, arrived=arrived))


def test_every_check_catches_something(catch_all):
    catch_all(LoggerContract, LOGGERS)
