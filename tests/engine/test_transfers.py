"""Batches go to a GPU ahead of their step; here streams are played, as no test needs a card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mtlcore.data import Batch
from mtlcore.engine.transfers import Transfers
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.loading.loader import Loaded
from mtlcore.testing import tiny_batch


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of streams, and when plans are copied."""
    events: list[Any] = []

    class Stream:
        def __init__(self, device: torch.device | None = None) -> None:
            self.name = "computing" if device is None else "copying"

        def wait_event(self, event: Event) -> None:
            events.append(f"{self.name} waits for {event.what}")

    class Event:
        def record(self, stream: Stream) -> None:
            self.what = next(e for e in reversed(events) if str(e).startswith(stream.name))

    computing, current = Stream(), [Stream()]

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, current[0] = current[0], stream
        yield
        current[0] = before

    def copied(plan: LoadedPlan, device: torch.device) -> LoadedPlan:
        events.append(f"{current[0].name}: {plan.batches[0].keys[0]} to {device}")
        return plan

    def kept(tensor: torch.Tensor, stream: Stream) -> None:
        assert stream is computing
        events.append(id(tensor))

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(LoadedPlan, "to", copied)
    monkeypatch.setattr(torch.Tensor, "record_stream", kept)
    return events


def plan(seed: int) -> LoadedPlan:
    batch = tiny_batch(2, seed=seed)
    return LoadedPlan((batch,), (Episode((*batch.targets,), 0),))


def test_the_next_step_is_copied_while_one_computes(told: list[Any]) -> None:
    plans = [plan(0), None, plan(1), plan(2)]
    found = []
    for number, one in enumerate(Transfers(torch.device("cuda")).ahead(plans)):
        told.append(f"step {number}")
        found.append(one)
    assert found == plans
    names = [one.batches[0].keys[0] if one else None for one in plans]
    said = [event for event in told if isinstance(event, str)]
    copies = [f"copying: {name} to cuda" for name in names]
    waits = [f"computing waits for {copy}" for copy in copies]
    assert said == [
        copies[0], waits[0], "step 0", copies[2], "step 1", copies[3], waits[2], "step 2",
        waits[3], "step 3",
    ]  # fmt: skip
    tensors = [id(t) for one in plans if one for t in one.batches[0].tensors()]
    assert sorted(event for event in told if not isinstance(event, str)) == sorted(tensors)


def test_nothing_is_asked_of_an_empty_epoch(told: list[Any]) -> None:
    assert list(Transfers(torch.device("cuda")).ahead([])) == []
    assert told == []


def test_elsewhere_plans_are_passed_on_one_by_one() -> None:
    asked = []

    def plans() -> Iterator[LoadedPlan]:
        for seed in range(2):
            asked.append(seed)
            yield plan(seed)

    ahead = Transfers(torch.device("cpu")).ahead(plans())
    next(ahead)
    assert asked == [0]


def test_all_of_a_batch_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, pinned = tiny_batch(2), []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(id(tensor))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    loaded = Loaded(batch=batch, errors=("one",)).pin_memory()
    assert isinstance(loaded.batch, Batch) and loaded.errors == ("one",)
    assert sorted(pinned) == sorted(map(id, batch.tensors()))
    assert len(pinned) == 1 + 2 * len(batch.targets)
    assert all(
        torch.equal(a, b) for a, b in zip(batch.tensors(), loaded.batch.tensors(), strict=True)
    )
    assert Loaded(batch=None, errors=("two",)).pin_memory().batch is None
