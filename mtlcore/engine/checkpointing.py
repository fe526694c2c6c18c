"""The checkpoint of a run: what it holds, and how a session goes on from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch

from mtlcore.balancing import Asked
from mtlcore.engine.progress import Progress
from mtlcore.engine.session import Session
from mtlcore.engine.step_times import StepTimes
from mtlcore.engine.stopping import Stopping
from mtlcore.errors import MtlError, outline
from mtlcore.learner import Learner
from mtlcore.storage import (
    BEST,
    LAST,
    LastCheckpoint,
    checked,
    plain_settings,
    with_model,
)
from mtlcore.system import out_of_memory, peak_memory

_PARTS = (
    "learner", "optimizer", "plans", "progress", "random", "ranks", "metrics_length", "threads"
)  # fmt: skip


def save_last(session: Session) -> None:
    """Write the checkpoint from which a run goes on as if nothing had happened.

    Raises:
        MtlError: A parameter is not finite, or the file cannot be written; an earlier checkpoint
            is left as it was.
    """
    _refuse_infinite(session)
    ranks = session.distributed.all_gather(_state_of_rank(session))
    if not session.distributed.is_main_process:
        return
    progress = session.progress
    progress.peak_memory = max(progress.peak_memory, peak_memory(session.device))
    tree = attrs.asdict(progress, recurse=False)
    tree["stopping"] = attrs.asdict(progress.stopping, recurse=False)
    tree["step_times"] = progress.step_times.state()
    state = {
        "learner": dict(session.learner.state_dict()),
        "optimizer": session.optimizer.state_dict(),
        "plans": session.planning.state_dict(),
        "progress": {**tree, "seconds": session.seconds},
        "random": {"balancing": session.balancing_generator.get_state()},
        "ranks": ranks,
        "metrics_length": session.directory.metrics_length(),
        "threads": torch.get_num_threads(),
        "length": {
            "steps": session.total_steps,
            "asked": session.learner.context.asked.to_json(),
        },
        "config": plain_settings(session.config.tree),
    }
    if session.average is not None:
        state["average"] = dict(session.average.model.state_dict())
    if session.teachers.fingerprints:
        state["teachers"] = session.teachers.fingerprints
    session.directory.save_checkpoint(LAST, state)
    session.directory.upload()


def save_best(session: Session) -> None:
    """Write the learner's weights as those of the best epoch, as they were evaluated.

    Raises:
        MtlError: A parameter is not finite, or the file cannot be written; an earlier checkpoint
            is left as it was.
    """
    _refuse_infinite(session)
    if session.distributed.is_main_process:
        state = {"learner": dict(session.learner.state_dict())}
        if session.average is not None and session.config.training.evaluate_ema:
            state["learner"] = with_model(state["learner"], session.average.model.state_dict())
        session.directory.save_checkpoint(BEST, state)


def restore(session: Session, state: Mapping[str, Any]) -> None:
    """Let a session go on from the state of a checkpoint.

    Raises:
        UsageError: The run has begun with other teachers.
        MtlError: It belongs to another model, or is not the last checkpoint of a run.
    """
    checkpoint = session.directory.checkpoint
    parts = _PARTS if session.average is None else (*_PARTS, "average")
    missing = [part for part in parts if part not in state]
    if missing:
        raise MtlError(
            f"{checkpoint}: holds no {', '.join(missing)}: it is not what a run can go on from; "
            "start one of its own with another --out"
        )
    checked(state, LastCheckpoint, str(checkpoint))
    _refuse_late_buffers(session, state["learner"])
    session.teachers.recognise(state.get("teachers", {}))
    try:
        session.learner.load_state_dict(state["learner"])
        if session.average is not None:
            session.average.model.load_state_dict(state["average"])
        session.optimizer.load_state_dict(state["optimizer"])
        session.planning.load_state_dict(state["plans"])
        session.progress = _progress_of(state["progress"])
        if "length" in state:  # a checkpoint of an earlier version does not say
            session.learner.context.asked = Asked.of(state["length"]["asked"])
        session.balancing_generator.set_state(state["random"]["balancing"])
        rank = session.distributed.rank
        if rank < len(state["ranks"]):  # the run may have had fewer processes
            _restore_rank(session, state["ranks"][rank])
    except Exception as error:  # components read their parts themselves, and raise what they like
        if out_of_memory(error):
            raise
        raise MtlError(f"{checkpoint}: belongs to another model: {outline(error)}") from error
    if session.average is not None:
        session.average.copy_buffers()  # those of the rank


def _progress_of(tree: Mapping[str, Any]) -> Progress:
    # An earlier version kept the sum and the number of the steps' times.
    known = {name: tree[name] for name in tree if name not in ("step_seconds", "timed_steps")}
    known["stopping"] = Stopping(**tree.get("stopping", {}))
    known["step_times"] = StepTimes.from_state(tree.get("step_times", ()))
    return Progress(**known)


def _refuse_late_buffers(session: Session, learner: Mapping[str, Any]) -> None:
    """Explain tensors of balancers that a fresh one does not have: they were made too late."""
    known = session.learner.state_dict().keys()
    for name in learner:
        if name.startswith("balancing.") and name not in known:
            number = name.removeprefix("balancing.balancers.").partition(".")[0]
            chain = session.learner.balancing.chain
            made = type(chain[int(number)]).__name__ if number.isdigit() else "a balancer"
            raise MtlError(
                f"{session.directory.checkpoint}: holds {name}, which {made} does not have before "
                "its first step: make buffers and parameters in `prepare`, or keep tensors that "
                "are made later in `get_extra_state` (mtlcore.balancing.Tentative does)"
            )


def _refuse_infinite(session: Session) -> None:
    """Keep parameters that are not finite out of checkpoints, which are called good later.

    A step takes back a gradient that is not finite. A finite one may still be too large a step:
    on every rank alike, as they have the same parameters.
    """
    parameters = dict(session.learner.named_parameters())
    if session.average is not None:
        named = session.average.model.named_parameters()
        parameters |= {f"average.{name}": parameter for name, parameter in named}
    norms = torch._foreach_norm([p.detach() for p in parameters.values()], ord=math.inf)
    largest = torch.stack([norm.float() for norm in norms]).tolist()
    wrong = [name for name, norm in zip(parameters, largest, strict=True) if not norm < math.inf]
    if not wrong:
        return
    checkpoint = session.directory.checkpoint
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    kept = f"The last good checkpoint is {checkpoint}; try" if checkpoint.exists() else "Try"
    raise MtlError(
        f"stopped at step {session.progress.step}: {wrong[0]}{more} {'are' if more else 'is'} no "
        f"longer finite. {kept} a lower optimizer.lr, or set optimizer.clip"
    )


def average_buffers(learner: Learner) -> None:
    """Average running statistics over the processes, as each has seen its own samples only."""
    distributed = learner.distributed
    if distributed.world_size == 1:
        return
    frozen = {id(tensor) for tensor in learner.model.frozen_tensors()}
    found = [b for b in learner.model.buffers() if b.is_floating_point()]
    buffers = [b for b in found if id(b) not in frozen]
    distributed.all_reduce(buffers)
    for buffer in buffers:
        buffer /= distributed.world_size


def _state_of_rank(session: Session) -> dict[str, Any]:
    """Return what each process has of its own: random streams and, of several, buffers."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if session.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(session.device)
    if session.distributed.world_size > 1:
        buffers = session.learner.model.named_buffers()
        state["buffers"] = {name: buffer.cpu().clone() for name, buffer in buffers}
    return state


def _restore_rank(session: Session, state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state and session.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], session.device)
    for name, buffer in session.learner.model.named_buffers():
        if name in state.get("buffers", ()):
            buffer.copy_(state["buffers"][name])
