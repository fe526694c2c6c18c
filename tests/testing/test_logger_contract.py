"""Loggers that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import json

import pytest
import torch

from mtlcore.standard.loggers import JsonLines
from mtlcore.storage import RunLogger, without_nan
from mtlcore.testing import LoggerContract


class ToFile(RunLogger):
    """Appends to a file, as a good one may."""

    def __init__(self, folder):
        self.file = folder / "lines"

    def start(self, run):
        self.file.touch()

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
    (StrictNumbers, "test_values_that_are_no_numbers", "JSON compliant"),
    (RenamesKeys, "test_what_it_is_told_stays", "changes what it is given"),
    (DrawsItsColour, "test_random_numbers_are_left_alone", "global generator"),
]


def arrived(self, folder):
    return [json.loads(line) for line in (folder / "lines").read_text().splitlines()]


@pytest.mark.parametrize(("component", "test", "message"), LOGGERS)
def test_loggers(component, test, message, held_to, catches):
    catches(held_to(LoggerContract, component, arrived=arrived), test, message)


@pytest.mark.parametrize("component", [ToFile, lambda folder: JsonLines(to=str(folder / "lines"))])
def test_good_loggers_pass(component, held_to, passes):
    component.__name__ = "good"
    passes(held_to(LoggerContract, component, arrived=arrived))


def test_every_check_catches_something(catch_all):
    catch_all(LoggerContract, LOGGERS)
