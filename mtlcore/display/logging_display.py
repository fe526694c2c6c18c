"""A display for programs that call mtlcore: what a terminal would show goes to `logging`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from mtlcore.display.run import Display, epoch_line

if TYPE_CHECKING:
    from mtlcore.metrics import MetricValues

_LOGGER = logging.getLogger("mtlcore")


@final
class LoggingDisplay(Display):
    """Logs a run to the logger `mtlcore`.

    The title, notes and a line per epoch have the level INFO; a warning, such as that of a skipped
    step, has WARNING. Python prints warnings even where a program has not configured logging.
    """

    def _begin(self, title: str) -> None:
        _LOGGER.info(title)

    def note(self, message: str) -> None:
        """Log a message as INFO."""
        _LOGGER.info(message)

    def warn(self, message: str) -> None:
        """Log a message as WARNING."""
        _LOGGER.warning(message)

    def epoch(
        self,
        epoch: int,
        epochs: int,
        losses: Mapping[str, float],
        metrics: MetricValues | None,
    ) -> None:
        """Log one line as INFO."""
        _LOGGER.info(epoch_line(epoch, epochs, losses, metrics, self._pace.seconds_left))

    def stop(self) -> None:
        """Do nothing: there is no terminal to restore."""
