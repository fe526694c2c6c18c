"""The start of a step: where in the run it stands, what thaws, what phase the backbone enters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mtlcore.engine.seeding import seeded
from mtlcore.engine.session import Session
from mtlcore.models import Backbone, Frozen, Transition


def enter_step(session: Session) -> None:
    """Tell the learner which step comes next; let learn, and enter a phase, where it is time."""
    context, progress = session.learner.context, session.progress
    context.step, context.epoch = progress.step, progress.epoch
    context.progress = progress.step / session.total_steps
    context.generator, context.losses = session.balancing_generator, {}
    if session.thawing is not None:
        _thaw(session, session.thawing)
    backbone = session.learner.model.backbone
    # A frozen backbone enters no phase: what that would re-initialise could not learn.
    if type(backbone).at_progress is Backbone.at_progress or session.backbone_is_frozen:
        return
    if session.frozen is None:
        frozen = session.learner.model.frozen_tensors()
        session.frozen = [(tensor, tensor.detach().clone()) for tensor in frozen]
    if backbone.has_phases:
        context.asked.value("model.backbone", progress.step)
    with seeded(session.device, session.config.seed + progress.step):
        transition = backbone.at_progress(progress.step / session.total_steps)
        if transition is not None:
            _apply(transition, session, session.frozen)


def _thaw(session: Session, frozen: Frozen) -> None:
    """Let learn what was frozen for the first part of the run.

    That is a function of the progress alone: a run that goes on from a checkpoint finds itself on
    the same side of it.
    """
    until, model = session.config.training.freeze_until, session.learner.model
    if until is None or not session.learner.context.reached(until, "training.freeze_until"):
        return
    model.thaw(frozen)
    session.thawing = None
    session.backbone_is_frozen, session.frozen = model.backbone_is_frozen, None
    session.display.note(
        f"step {session.progress.step}: {', '.join(session.config.freeze)} "
        f"{'learns' if len(session.config.freeze) == 1 else 'learn'} from here on"
    )


def _apply(
    transition: Transition, session: Session, frozen: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """Carry the consequences of a phase to heads, balancer, optimizer and early stopping."""
    model = session.learner.model
    parameters = dict(model.backbone.named_parameters())
    initialised = [parameters[name] for name in transition.reset]
    if transition.reset_heads:
        initialised += model.reset_heads()
    for tensor, kept in frozen:
        tensor.requires_grad_(False).copy_(kept)
    initialised = [parameter for parameter in initialised if parameter.requires_grad]
    # What a phase re-initialised must learn again, also for tasks that had stopped.
    session.progress.stopping.reset_due = True
    if transition.reset_balancer:
        session.learner.balancing.reset()
    session.optimizer.reset_state(initialised)
    session.display.note(
        f"step {session.progress.step}: the backbone enters its next phase"
        + (f" ({len(initialised)} tensors start anew)" if initialised else "")
    )
