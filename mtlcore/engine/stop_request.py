"""Ctrl-C, SIGTERM, SIGHUP and `request_stop` while a run trains: the state is saved, then it ends.

After a signal the step is finished, after a request the epoch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import final

from mtlcore.engine.session import Session
from mtlcore.errors import Interrupted, MtlError, Pruned
from mtlcore.storage import take_stop_request
from mtlcore.system import HANGUP, STOPPING, handled


class StopRequested(Exception):
    """A signal or a request asked to stop; raised where a checkpoint can hold the state."""


@final
class StopRequest:
    """Hears signals and requests for a session.

    Args:
        session: The run to stop.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._signal: int | None = None
        self._reason: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let the first signal ask to stop after the step, and a second one stop at once.

        Of several processes each hears the first one only: torchrun passes on what the terminal
        has sent already.
        """
        before = {number: signal.getsignal(number) for number in STOPPING}

        def request(number: int, _frame: object) -> None:
            self._signal = number
            if self._session.distributed.world_size > 1:
                return
            for other in STOPPING:
                # A terminal that closes sends its signal twice: itself, and by its shell.
                if other != HANGUP:
                    signal.signal(other, before[other])
            # A print that the signal interrupted refuses a second one.
            with suppress(RuntimeError):
                self._session.display.note("stopping after this step; once more stops at once")

        with handled(request):
            yield

    def check(self) -> None:
        """Raise `StopRequested` if a signal came, on every rank after the same step."""
        requested, distributed = self._signal is not None, self._session.distributed
        if distributed.any_of([requested])[0] if distributed.world_size > 1 else requested:
            raise StopRequested

    def check_request(self, is_finished: bool) -> None:
        """Raise `StopRequested` if the run was asked to stop, on every rank after the same epoch.

        A run that is finished anyway takes the request, and finishes.
        """
        session = self._session
        reason = session.distributed.broadcast(
            lambda: take_stop_request(session.directory.location)
        )
        if reason is not None and not is_finished:
            self._reason = reason
            raise StopRequested

    def interruption(self) -> MtlError:
        """Return the error that tells how to go on from what was saved."""
        session = self._session
        go_on = f"Go on with: {session.config.resume_command(session.directory.location)}"
        if self._reason is not None:
            return Pruned(
                f"asked to stop after epoch {session.progress.epoch} of {session.epochs} "
                f"({self._reason}); saved. {go_on}"
            )
        name = signal.Signals(self._signal or signal.SIGINT).name
        return Interrupted(
            f"stopped by {name} after step {session.progress.step} of {session.total_steps}; "
            f"saved. {go_on}"
        )
