"""What can be known to fail before the first step."""

from __future__ import annotations

from mtlcore.balancing import GradientBalancer
from mtlcore.config import RunConfig
from mtlcore.data import DataError, Sample
from mtlcore.engine.building import make_metrics
from mtlcore.engine.session import Session
from mtlcore.episodes import EpisodeSampler
from mtlcore.errors import UsageError
from mtlcore.learner import Learner, check_backbone
from mtlcore.loading import stop_at
from mtlcore.models import check_size
from mtlcore.optimizers import Optimizer


def check(session: Session) -> None:
    """Refuse what can be known to fail before the first step.

    Raises:
        UsageError: too small an input, a backbone that cannot read it or has not the place that
            the balancer compares at, a balancer that cannot work in several processes, metrics of
            a task that cannot stand together, or an optimizer without the query batches it needs.
        DataError: no sample can be read.
    """
    _check_ranks(session.learner)
    make_metrics(session.config)
    _check_queries(session.optimizer, session.sampler, session.config)
    sample = _first_readable(session)
    check_size(sample.inputs.shape[1:], session.config.training.batch_size,
               session.learner.model.backbone)  # fmt: skip
    check_backbone(session.learner, sample.inputs[None].to(session.device))


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


def _check_queries(optimizer: Optimizer, sampler: EpisodeSampler, config: RunConfig) -> None:
    if optimizer.needs_queries and not sampler.has_queries:
        raise UsageError(
            f"episodes: {config.episodes.component.spec.name} plans no query batches, by which "
            f"optimizer {config.optimizer.component.spec.name} judges what it adapts; choose "
            "another of either (mtl list episode-samplers)"
        )
