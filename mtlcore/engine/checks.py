"""What can be known to fail before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mtlcore.balancing import MISSING, Balancing, GradientBalancer
from mtlcore.config import RunConfig
from mtlcore.data import DataError, Sample, collate, place_size
from mtlcore.engine.building import make_metrics
from mtlcore.engine.flops import trial
from mtlcore.engine.session import Session
from mtlcore.episodes import EpisodeSampler
from mtlcore.errors import UsageError, outline
from mtlcore.features import Features
from mtlcore.inputs import Inputs, describe_inputs, image_size, map_inputs
from mtlcore.learner import Learner
from mtlcore.loading import stop_at
from mtlcore.models import MultiTaskModel
from mtlcore.optimizers import Optimizer
from mtlcore.system import out_of_memory
from mtlcore.tasks import Task


def check(session: Session) -> Inputs:
    """Refuse what can be known to fail before the first step.

    Returns:
        The inputs that were tried: of a batch of one sample, on the run's device.

    Raises:
        UsageError: batches of one sample that batch norm cannot train on, a backbone that cannot
            read an input or has not the place that the balancer compares at, a head that does not
            fit it or its task, a balancer that cannot work in several processes, metrics of
            a task that cannot stand together, an optimizer without the query batches it needs, a
            balancer without the independent batches or the losses after a step that it needs, a
            model of which too much is frozen, or a teacher that cannot read the inputs.
        DataError: no sample can be read.
    """
    _check_ranks(session.learner)
    _check_frozen(session.learner, session.config.learning)
    make_metrics(session.config)
    _check_queries(session.optimizer, session.sampler, session.config)
    _check_batches(session.optimizer, session.learner.balancing, session.config)
    _check_reevaluation(session.optimizer, session.learner.balancing, session.config)
    sample = _first_readable(session)
    batch = collate([sample], session.config.tasks, session.splits["train"].collate_inputs)
    inputs = batch.to(session.device).inputs
    check_model(session.learner, inputs)
    _check_lone_samples(session, inputs)
    session.teachers.check(inputs)
    return inputs


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
            "that they share, and all of these are frozen (model.freeze, initial.train, adapters "
            "per task); let some of them learn, or choose a balancer of losses, such as equal"
        )


def _check_lone_samples(session: Session, inputs: Inputs) -> None:
    """Refuse batches of one sample, if none of them could be trained on."""
    samples = min(session.config.training.batch_size, len(session.splits["train"]))
    learner = session.learner
    if samples > 1 or learner.views > 1:
        return
    was_training = learner.training
    learner.train()
    fine = learner.trains_on(inputs)
    learner.train(was_training)
    if not fine:
        raise UsageError(
            "training.batch_size: batches hold one sample, of whose maps batch norm sees a single "
            f"value per channel (inputs are {describe_inputs(inputs)}); it needs batches of two or "
            "more, or larger maps (data.size, a head other than deeplab)"
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


def _check_reevaluation(optimizer: Optimizer, balancing: Balancing, config: RunConfig) -> None:
    asking = [type(balancer).__name__ for balancer in balancing.chain if balancer.reevaluates]
    if asking and not optimizer.reevaluates:
        raise UsageError(
            f"balancer: {asking[0]} looks at the losses again after each step, and optimizer "
            f"{config.optimizer.component.spec.name} does not compute them; choose another of "
            "either, such as optimizer adam or sgd"
        )


def check_model(learner: Learner, inputs: Inputs) -> None:
    """Refuse a model that cannot predict from a sample, or lacks what the balancer's scope needs.

    Args:
        learner: The learner whose model is checked; it is left as it was.
        inputs: Those of a batch of any one sample.

    Raises:
        UsageError: The backbone cannot read it, or a head cannot read the backbone's maps or
            predicts something of another shape than its task has.
    """
    backbone = learner.model.backbone
    scope = learner.balancing.scope
    if scope == "last_shared" and not any(
        p.requires_grad for p in learner.model.last_shared_parameters()
    ):
        raise UsageError(MISSING[scope])
    sample = describe_inputs(map_inputs(lambda tensor: tensor[0], inputs))
    with trial(learner, inputs):
        with _explained(
            f"model.backbone: {type(backbone).__name__} cannot read a sample of shape {sample}",
            "choose a backbone for such inputs (mtl list backbones)",
        ):
            features = learner.model.features(inputs, learner.tasks)
        for task in learner.model.tasks.values():
            _check_head(learner.model, task, features, inputs)


def _check_head(model: MultiTaskModel, task: Task, features: Features, inputs: Inputs) -> None:
    size = image_size(inputs)
    name = type(model.head(task.name)).__name__
    others = "choose another head or backbone (mtl list heads, mtl list backbones)"
    with _explained(
        f"model.heads.{task.name}: {name} cannot read the maps of {type(model.backbone).__name__}",
        others,
    ):
        predicted = tuple(model.predict(features, [task.name], size)[task.name].shape[1:])
    expected = (task.channels, *(place_size(task, inputs) if task.is_dense else ()))
    if predicted != expected and (task.layout != "map" or len(size) == 2):
        raise UsageError(
            f"model.heads.{task.name}: {name} predicts {list(predicted)} for a sample, and the "
            f"task has {list(expected)}; {others}"
        )


@contextmanager
def _explained(problem: str, remedy: str) -> Iterator[None]:
    """Turn what a module raises at inputs that it cannot work with into a message."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
        if out_of_memory(error):
            raise
        raise UsageError(f"{problem} ({outline(error)}); {remedy}") from error
