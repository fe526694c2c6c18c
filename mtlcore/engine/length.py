"""A run that goes on with another number of steps than it had, where that is the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlcore.engine.session import Session
from mtlcore.engine.validation import is_due
from mtlcore.errors import UsageError


def changed_length(session: Session, state: Mapping[str, Any]) -> str | None:
    """Tell that a restored session is longer or shorter than the run of its checkpoint.

    Args:
        session: Restored from the checkpoint.
        state: Of the checkpoint.

    Returns:
        What people should know; None where the length is as it was.

    Raises:
        UsageError: What was learnt so far would have been learnt otherwise in a run of the new
            length.
    """
    place, progress = session.directory.location, session.progress
    length = state.get("length")
    if length is None:  # a checkpoint of an earlier version, which is of one length
        return None
    before, total = int(length["steps"]), session.total_steps
    if before == total:
        return None
    if session.epochs <= progress.epoch:
        raise UsageError(
            f"{place}: {progress.epoch} epochs are done, so that a run of {session.epochs} would "
            "have ended before; name more by training.epochs or training.steps"
        )
    if progress.stopping.ended is not None:
        raise UsageError(
            f"{place}: ended by training.patience or training.task_patience after epoch "
            f"{progress.stopping.ended}, and would have in a run of any length; "
            f"{_instead(session)}"
        )
    asked = session.learner.context.asked
    found = asked.differences(progress.step, before, total)
    moved = _moved_evaluations(session)
    if moved is not None:
        found += [f"{by} learns from evaluations, and {moved}" for by in asked.evaluations]
    if found:
        told = "\n  ".join(found)
        raise UsageError(
            f"{place}: a run of {total} steps would have been another one than this run of "
            f"{before} in the {progress.step} steps that are done:\n  {told}\n{_instead(session)}"
        )
    same = (
        f"the run goes on from epoch {progress.epoch} to {session.epochs}: with the weights of one "
        "that was so long from the start"
    )
    return same if moved is None else f"{same}; only its records differ, as {moved}"


def _moved_evaluations(session: Session) -> str | None:
    """Return how the evaluations that a run of this length would have had differ from those."""
    epochs = range(session.progress.epoch)
    expected = {e + 1 for e in epochs if is_due(session.config.training, session.epochs, e)}
    had = {epoch + 1 for epoch, _ in session.progress.evaluations}
    told = []
    if more := sorted(had - expected):
        told.append(f"it would not have been evaluated after epoch {_listed(more)}")
    if fewer := sorted(expected - had):
        told.append(f"it would have been evaluated after epoch {_listed(fewer)}")
    if not told:
        return None
    return " and ".join(told) + " (training.evaluate_every says when)"


def _listed(epochs: list[int]) -> str:
    few = ", ".join(map(str, epochs[:5]))
    return f"{few}, ..." if len(epochs) > 5 else few


def _instead(session: Session) -> str:
    place = session.directory.location
    return (
        f"to go on from its weights with moments and schedules that begin anew, start a run by "
        f"--set initial.run={place} --set initial.checkpoint=last with another --out"
    )
