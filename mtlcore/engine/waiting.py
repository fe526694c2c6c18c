"""How long steps wait for data, told where it is long."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar, final

from mtlcore.engine.session import Session

# Of the time of steps, and from how many seconds of steps on it is told.
_MUCH, _ENOUGH_SECONDS = 0.1, 30.0

_Plan = TypeVar("_Plan")


@final
class DataWaits:
    """Measures how long steps wait for their samples.

    Args:
        session: The run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waited = self._total = 0.0
        self._is_told = False

    def watched(self, plans: Iterable[_Plan]) -> Iterator[_Plan]:
        """Yield plans as they are loaded, and count the time.

        The first one is not counted: worker processes begin there, and are right to.
        """
        loading, counts = iter(plans), False
        while True:
            asked = time.monotonic()
            try:
                loaded = next(loading)
            except StopIteration:
                return
            arrived = time.monotonic()
            yield loaded
            if counts:
                self._waited += arrived - asked
                self._total += time.monotonic() - asked
            counts = True

    def tell(self) -> None:
        """Warn, once in a run, where steps wait for data for more than a tenth of their time."""
        if self._is_told or self._total < _ENOUGH_SECONDS or self._waited < _MUCH * self._total:
            return
        self._is_told = True
        data = self._session.config.data
        remedies = [f"let more processes load (data.workers, now {data.workers})"]
        if not data.cache:
            remedies.append("keep samples in memory (data.cache = 1000, in megabytes)")
        self._session.display.warn(
            f"steps wait for data {self._waited / self._total:.0%} of their time; "
            f"{', or '.join(remedies)}"
        )
