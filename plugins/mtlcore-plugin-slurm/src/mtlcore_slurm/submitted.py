"""What submitit runs on a node of the cluster."""

from __future__ import annotations

import os
import signal
from typing import final

import attrs
from submitit.core.utils import DelayedSubmission

from mtlcore.launchers import CellJob
from mtlcore.system import FROM_TERMINAL


@final
@attrs.frozen(kw_only=True)
class SubmittedCell:
    """A cell, for submitit: what it calls, and what it submits again when time is up.

    Args:
        job: The cell's job.
        from_terminal: Whether it was started from a terminal, with its signals held back.
    """

    job: CellJob
    from_terminal: bool

    def __call__(self) -> int:
        """Run the cell."""
        if self.from_terminal:
            _leave_terminal()
        return self.job.run()

    def checkpoint(self) -> DelayedSubmission:
        """Let the cell save, and return what goes on with it: Slurm has said that time is up."""
        return DelayedSubmission(attrs.evolve(self, job=self.job.interrupt()))


def _leave_terminal() -> None:
    os.setsid()
    for number in set(FROM_TERMINAL) & signal.sigpending():
        signal.sigwait([number])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_TERMINAL)
