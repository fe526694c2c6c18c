"""A run tells where its steps wait for data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mtlcore
from mtlcore.engine.waiting import DataWaits
from mtlcore.testing import TINY_RUN, NotesDisplay


class Clock:
    """Seconds that pass when somebody says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def told(
    monkeypatch: pytest.MonkeyPatch, loading: float, learning: float, steps: int = 101,
    cache: int = 0, rounds: int = 1,
) -> list[str]:  # fmt: skip
    """What is said of steps that take so many seconds each."""
    clock, said = Clock(), list[str]()
    monkeypatch.setattr("mtlcore.engine.waiting.time", clock)

    def plans() -> Any:
        for number in range(steps):
            clock.now += loading + 1000 * (number == 0)
            yield number

    session: Any = SimpleNamespace(
        config=SimpleNamespace(data=SimpleNamespace(workers=1, cache=cache)),
        display=SimpleNamespace(warn=said.append),
    )
    waits = DataWaits(session)
    for _ in range(rounds):
        for _plan in waits.watched(plans()):
            clock.now += learning
        waits.tell()
    return said


def test_waiting_is_told_once_with_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = told(monkeypatch, 0.25, 0.75, rounds=3)
    assert said.startswith("steps wait for data 25% of their time; ")
    assert "data.workers, now 1" in said and "data.cache" in said
    assert "data.cache" not in told(monkeypatch, 0.25, 0.75, cache=100)[0]


def test_little_waiting_and_short_runs_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not told(monkeypatch, 0.09, 0.91), "a tenth is not reached; the first wait is no wait"
    assert not told(monkeypatch, 0.25, 0.75, steps=30), "29 seconds are no measurement"
    assert told(monkeypatch, 0.25, 0.75, steps=30, rounds=2)


def test_a_run_measures_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtlcore.engine.waiting._ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr("mtlcore.engine.waiting._MUCH", 0.0)
    display = NotesDisplay()
    settings = {**TINY_RUN, "training": {**TINY_RUN["training"], "batch_size": 2}}
    mtlcore.run(settings, out=str(tmp_path / "run"), display=display)
    assert sum("steps wait for data" in note for note in display.notes) == 1
