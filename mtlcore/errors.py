"""The errors that mtlcore shows to people.

A message names the path or key it is about, says what is wrong and what to do. The command line
prints the message without a traceback and leaves with the class's `exit_code`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from textwrap import shorten

__all__ = [
    "ConfigError",
    "Interrupted",
    "MtlError",
    "Pruned",
    "UsageError",
    "describe",
    "did_you_mean",
    "exit_told",
    "outline",
    "shown",
]


class MtlError(Exception):
    """Something went wrong that the user should read about: exit code 1."""

    exit_code = 1


class UsageError(MtlError):
    """What was asked for cannot be done as asked: exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """Every problem of a configuration at once.

    Args:
        problems: One line each, `path: message`.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class Interrupted(MtlError):
    """A signal stopped the run after its state was saved: exit code 130, as of Ctrl-C."""

    exit_code = 130


class Pruned(MtlError):
    """A run was asked to stop (`mtlcore.runs.request_stop`) and saved its state: exit code 3."""

    exit_code = 3


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest of the known words, or nothing."""
    close = get_close_matches(word, sorted(set(known)), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def outline(error: BaseException) -> str:
    """Return an exception as one line of bearable length, such as a list of missing tensors."""
    return shorten(describe(error), 300, placeholder=" ...")


def describe(error: BaseException) -> str:
    """Return an exception as one line; its type is named where the text alone would puzzle."""
    text = " ".join(str(error).split())
    if text and isinstance(error, MtlError | ImportError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def exit_told(error: SystemExit) -> str:
    """Return what to say where a component ended the program instead of raising an error."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "a component"
    return f"{where} wants to end the program (exit status {error.code}); it must raise an error"


def shown(value: object) -> str:
    """Return a value as a message quotes it: its repr, cut to a bearable length."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of thousands of digits
        return "a number that is too long to print"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
