"""What can be known to fail before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from mtlcore.balancing import Balancing, GradientBalancer
from mtlcore.config import RunConfig
from mtlcore.data import DataError, Sample, collate
from mtlcore.engine.building import make_metrics
from mtlcore.engine.session import Session
from mtlcore.episodes import EpisodeSampler
from mtlcore.errors import MtlError, UsageError
from mtlcore.inputs import image_size
from mtlcore.learner import Learner, check_backbone
from mtlcore.loading import stop_at
from mtlcore.models import Backbone
from mtlcore.optimizers import Optimizer


def check(session: Session) -> None:
    """Refuse what can be known to fail before the first step.

    Raises:
        UsageError: too small an input, a backbone that cannot read it or has not the place that
            the balancer compares at, a balancer that cannot work in several processes, metrics of
            a task that cannot stand together, an optimizer without the query batches it needs, a
            balancer without the independent batches it needs, a model of which too much is frozen,
            or a teacher that cannot read the inputs.
        DataError: no sample can be read.
    """
    _check_ranks(session.learner)
    _check_frozen(session.learner, session.config.learning)
    make_metrics(session.config)
    _check_queries(session.optimizer, session.sampler, session.config)
    _check_batches(session.optimizer, session.learner.balancing, session.config)
    sample = _first_readable(session)
    batch = collate([sample], session.config.tasks, session.splits["train"].collate_inputs)
    check_size(
        image_size(batch.inputs),
        session.config.training.batch_size,
        session.learner.model.backbone,
    )
    inputs = batch.to(session.device).inputs
    check_backbone(session.learner, inputs)
    session.teachers.check(inputs)


def _first_readable(session: Session) -> Sample:
    split = session.splits["train"]
    errors = []
    for index in range(len(split)):
        try:
            return split.sample(index)
        except DataError as error:
            if session.config.data.on_error == "stop":
                raise stop_at(error) from error
            errors.append(str(error))
    raise DataError(f"none of the {len(split)} training samples can be read; first: {errors[0]}")


def _check_ranks(learner: Learner) -> None:
    world_size = learner.distributed.world_size
    if world_size == 1:
        return
    for balancer in learner.balancing.loss_balancers:
        if balancer.needs_maps and not balancer.sums_over_ranks:
            raise UsageError(
                f"balancer: {type(balancer).__name__} learns from elementwise losses, of which "
                f"each of {world_size} processes has a part only; train it in one process"
            )
    finisher = learner.balancing.finisher
    if (
        isinstance(finisher, GradientBalancer)
        and finisher.scope == "features"
        and finisher.granularity != "element"
    ):
        raise UsageError(
            f"balancer: {type(finisher).__name__} combines gradients of features, and each of "
            f"{world_size} processes has those of its own samples only; train it in one process, "
            "or use the scope 'shared'"
        )


def _check_frozen(learner: Learner, learning: Sequence[str]) -> None:
    model, finisher = learner.model, learner.balancing.finisher
    shared = model.shared_parameters()
    if not shared or any(p.requires_grad for p in shared):
        return
    idle = [t for t in learning if not any(p.requires_grad for p in model.task_parameters(t))]
    if idle:
        raise UsageError(
            f"model.freeze: it leaves nothing that could learn from the loss of {', '.join(idle)}; "
            "let a part of the model learn, or leave the task out of tasks"
        )
    if finisher is not None:
        raise UsageError(
            f"balancer: {type(finisher).__name__} compares the tasks' gradients at the parameters "
            "that they share, and all of these are frozen (model.freeze, initial.train); let some "
            "of them learn, or choose a balancer of losses, such as equal"
        )


def _check_queries(optimizer: Optimizer, sampler: EpisodeSampler, config: RunConfig) -> None:
    if optimizer.needs_queries and not sampler.has_queries:
        raise UsageError(
            f"episodes: {config.episodes.component.spec.name} plans no query batches, by which "
            f"optimizer {config.optimizer.component.spec.name} judges what it adapts; choose "
            "another of either (mtl list episode-samplers)"
        )


def _check_batches(optimizer: Optimizer, balancing: Balancing, config: RunConfig) -> None:
    if optimizer.separates_batches or (balancing.batches == 1 and balancing.validation is None):
        return
    raise UsageError(
        f"balancer: {type(balancing.finisher).__name__} compares gradients of several independent "
        f"batches or of a validation batch, and optimizer {config.optimizer.component.spec.name} "
        "takes its steps from one; choose another of either, such as optimizer adam or sgd"
    )


def check_size(size: Sequence[int], batch: int, backbone: Backbone) -> None:
    """Raise an error if the deepest map is a single pixel of a single sample.

    Args:
        size: height and width of the inputs; others have none.
        batch: number of samples.
        backbone: whose strides are looked at.

    Raises:
        MtlError: it is; batch norm would have a single value per channel.
    """
    stride = max(backbone.strides)
    if batch == 1 and len(size) == 2 and all(-(-side // stride) <= 1 for side in size):
        raise MtlError(
            f"data.size {list(size)} leaves a deepest map of one pixel at stride {stride}: batch "
            "norm cannot train on one sample of it; use larger images or training.batch_size >= 2"
        )
