"""Batches on their way to a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import final

import torch

from mtlcore.episodes import LoadedPlan

__all__ = ["Transfers"]


@final
class Transfers:
    """Copies the batches of the next step to the run's device while the step before computes.

    On a GPU that takes a stream of its own and memory for one step's batches more; the loader pins
    what is copied. Elsewhere batches are where they are needed.

    Args:
        device: Where the learner is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def ahead(self, plans: Iterable[LoadedPlan | None]) -> Iterator[LoadedPlan | None]:
        """Yield plans with their batches on the device.

        Args:
            plans: As the loader yields them. On a GPU the next one is asked for before one is
                yielded, so that what cannot be loaded is told a step early.
        """
        if self._stream is None:
            yield from plans
            return
        begun: list[tuple[LoadedPlan | None, torch.cuda.Event]] = []
        for plan in plans:
            begun.append(self._begun(plan, self._stream))
            if len(begun) > 1:
                yield self._arrived(*begun.pop(0))
        if begun:
            yield self._arrived(*begun.pop())

    def _begun(
        self, plan: LoadedPlan | None, stream: torch.cuda.Stream
    ) -> tuple[LoadedPlan | None, torch.cuda.Event]:
        """Begin to copy a plan; return it with what happens when it is there."""
        there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            moved = None if plan is None else plan.to(self._device)
            there.record(stream)
        return moved, there

    def _arrived(self, plan: LoadedPlan | None, there: torch.cuda.Event) -> LoadedPlan | None:
        """Let the stream that computes wait until a plan is there."""
        if plan is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(there)
            for batch in plan.batches:
                for tensor in batch.tensors():
                    # Its memory is the copying stream's, which would use it again too early.
                    tensor.record_stream(computing)
        return plan
