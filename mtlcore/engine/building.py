"""From a configuration to the objects of a run, in the order in which data meets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import attrs
import torch

from mtlcore.balancing import Balancer, Balancing, DepthSettings
from mtlcore.config import Chosen, ChosenMetric, DataConfig, RunConfig
from mtlcore.data import Dataset
from mtlcore.distributed import SINGLE_PROCESS, Distributed
from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.learner import Learner
from mtlcore.loading import (
    Augmentation,
    Loader,
    PlanReader,
    SampleCache,
    Split,
    check_shared,
    draw_regime,
)
from mtlcore.metrics import Metric, MetricCollection, RegionalMetric
from mtlcore.models import (
    Backbone,
    BackboneRates,
    MultiTaskModel,
    NeckPerTask,
    Necks,
    SharedNeck,
    count_parameters,
)
from mtlcore.tasks import Task


def open_splits(config: RunConfig) -> dict[str, Split]:
    """Return the training and validation split as the run uses them.

    Raises:
        UsageError: a split without samples; samples that cannot be kept.
    """
    train = open_split(config, "train", config.data.train)
    # A stream of its own: the regime is the same whatever else a run draws.
    generator = torch.Generator().manual_seed(config.seed)
    names = [task.name for task in config.tasks if task.name not in train.self_labelled]
    train.regime = draw_regime(config.data.labels, names, train.examples, generator)
    val = open_split(config, "val", config.data.val)
    if config.data.cache:
        if train.needs_teachers or val.needs_teachers:
            raise UsageError(
                f"data.cache: labels of {config.data.name} are what teachers say; leave it at 0"
            )
        check_shared(config.data.workers)
        cache = SampleCache(config.data.cache, len(train) + len(val))
        train.cache, val.cache = (cache, 0), (cache, len(train))
    return {"train": train, "val": val}


def open_split(config: RunConfig, name: str, limit: int | None) -> Split:
    """One split; `limit` examples of it, or all; of the training split the share that is used."""
    target: type[Dataset] = config.dataset.component.load()
    dataset = open_dataset(config.data, config.dataset, name, limit)
    size = config.data.size or target.default_size(config.data.root, **config.dataset.settings)
    fraction = config.data.train_fraction
    if name == "train" and fraction is not None:
        examples = len(dataset) // (1 + dataset.repeats)
        whole = examples if limit is None else min(limit, examples)
        limit = max(1, round(fraction * whole))
    split = Split(dataset, config.labels, size, limit)
    if len(split) == 0:
        where = f" at {config.data.root}" if config.data.root else ""
        raise UsageError(f"data: the split {name!r} of {config.data.name}{where} holds no sample")
    return split


def open_dataset(data: DataConfig, chosen: Chosen, name: str, limit: int | None) -> Dataset:
    """Open a split of a dataset; one that generates its samples gets `limit` of them.

    Raises:
        UsageError: it generates samples without end, and there is no limit.
    """
    target: type[Dataset] = chosen.component.load()
    extra: dict[str, object] = {}
    if target.renders_size and data.size is not None:
        extra["size"] = data.size
    if target.unlimited:
        if limit is None:
            raise UsageError(f"data.{name}: {data.name} has no end; say how many samples")
        extra["samples"] = limit
    dataset: Dataset = chosen.make(data.root, name, **extra)
    return dataset


def make_loader(
    config: RunConfig, splits: Mapping[str, Split], views: int = 1, pin_memory: bool = False
) -> Loader:
    """Return the loader of batches for training and evaluation.

    Args:
        config: The run.
        splits: Of its dataset.
        views: Number of views of each training sample.
        pin_memory: Whether batches will be copied to a GPU.

    Raises:
        UsageError: several views of each sample are wanted, and nothing makes them differ.
    """
    augment = config.data.augment
    augmentation = Augmentation(scales=augment.scales, flip=augment.flip)
    active = augment.flip or any(scale != 1 for scale in augment.scales)
    if views > 1 and not active:
        raise UsageError(
            f"cross_task: it compares {views} views of each training sample, and without "
            "augmentation they are the same; set data.augment.scales, such as [1.0, 1.2, 1.5]"
        )
    reader = PlanReader(
        dict(splits),
        config.labels,
        augmentation if active else None,
        config.data.on_error,
        views,
        [chosen.make(config.tasks) for chosen in config.augmentations],
    )
    return Loader(reader, config.data.workers, config.data.on_error, pin_memory)


def build_model(config: RunConfig) -> MultiTaskModel:
    """Backbone and heads; initialised from torch's global generator.

    Raises:
        UsageError: `model.freeze` names what the model does not have.
    """
    backbone: Backbone = config.backbone.make(config.tasks)
    features = FeatureInfo.of(backbone)
    neck = _necks(config, features)
    if neck is not None:
        features = neck.info
    heads = {task.name: config.heads[task.name].make(task, features) for task in config.tasks}
    model = MultiTaskModel(config.tasks, backbone, heads, neck)
    if config.training.freeze_until is None:
        model.freeze(config.freeze)
    if config.initial is not None and config.initial.train == "heads":
        model.freeze(model.parts_of_others(config.learning))
    return model


def _necks(config: RunConfig, features: FeatureInfo) -> Necks | None:
    if config.neck is None:
        return None
    if config.neck_per_task:
        return NeckPerTask(config.tasks, partial(config.neck.make, features))
    return SharedNeck(config.neck.make(features))


def restoring(config: RunConfig) -> RunConfig:
    """Return a configuration whose backbone reads no first weights: those of a checkpoint follow.

    So a run can be used and goes on where the file that it began with is not at hand.
    """
    return attrs.evolve(config, backbone=_without_first_weights(config.backbone))


def _without_first_weights(chosen: Chosen) -> Chosen:
    first = getattr(chosen.component.load(), "first_weights", ())
    kept = {
        name: _without_first_weights(value) if isinstance(value, Chosen) else value
        for name, value in chosen.settings.items()
        if name not in first
    }
    return attrs.evolve(chosen, settings=kept)


def build_learner(config: RunConfig, distributed: Distributed = SINGLE_PROCESS) -> Learner:
    """Return the model with its losses and the balancing.

    Raises:
        UsageError: components that cannot work together.
    """
    model = build_model(config)
    losses = {task.name: config.losses[task.name].make(task) for task in config.tasks}
    features = FeatureInfo.of(model.backbone) if model.neck is None else model.neck.info
    with torch.random.fork_rng(devices=[]):  # they leave what model and dropout draw as it was
        cross_task = [chosen.make(config.tasks, features) for chosen in config.cross_task]
    chain: list[Balancer] = [chosen.make() for chosen in config.chain]
    how_often = attrs.asdict(config.balancing)
    balancing = Balancing(chain, how_often.pop("update_every"), DepthSettings(**how_often))
    how = config.training
    return Learner(
        model,
        losses,
        cross_task,
        balancing,
        how.normalisation,
        how.precision,
        distributed,
        BackboneRates(**attrs.asdict(config.rates)),
    )


def make_metrics(config: RunConfig) -> dict[str, Metric]:
    """Return a fresh metric per task.

    Raises:
        UsageError: Two metrics of a task compute a value of the same name.
    """
    made = {task.name: [_metric(chosen, task) for chosen in config.metrics[task.name]]
            for task in config.tasks}  # fmt: skip
    return {name: _as_one(name, metrics) for name, metrics in made.items()}


def _metric(chosen: ChosenMetric, task: Task) -> Metric:
    if chosen.regions is not None:
        return RegionalMetric(lambda: chosen.make(task), chosen.regions)
    made: Metric = chosen.make(task)
    return made


def _as_one(task: str, metrics: Sequence[Metric]) -> Metric:
    if len(metrics) == 1:
        return metrics[0]
    try:
        return MetricCollection(metrics)
    except ValueError as error:
        raise UsageError(f"metrics.{task}: {error}") from error


def parameter_table(learner: Learner, depth: int = 1) -> dict[str, object]:
    """Numbers of parameters: total, of which learn, shared, per task, per module, and of others.

    Args:
        learner: whose parameters are counted, each tensor once.
        depth: how deep into the backbone modules are listed; a module includes what is inside.
    """
    model = learner.model
    backbone = {
        f"backbone.{name}": count_parameters(module.parameters())
        for name, module in model.backbone.named_modules()
        if name and name.count(".") < depth
    }
    names = {task.key: task.name for task in model.tasks.values()}
    necks = {
        f"neck.{names.get(key, key)}": count_parameters(module.parameters())
        for key, module in (model.neck.named_children() if model.neck is not None else ())
    }
    heads = {
        f"heads.{name}": count_parameters(model.head(name).parameters()) for name in model.tasks
    }
    return {
        "total": count_parameters(model.parameters()),
        "trainable": count_parameters(p for p in model.parameters() if p.requires_grad),
        "shared": count_parameters(model.shared_parameters()),
        "tasks": {name: count_parameters(model.task_parameters(name)) for name in model.tasks},
        "modules": {
            name: number for name, number in {**backbone, **necks, **heads}.items() if number
        },
        "components": {
            "losses": count_parameters(learner.losses.parameters()),
            "cross_task": count_parameters(learner.cross_task.parameters()),
            "balancers": count_parameters(learner.balancing.parameters()),
        },
    }


def pick_device(wanted: str, distributed: Distributed = SINGLE_PROCESS) -> torch.device:
    """Return the device of a name; "auto" is a GPU (each process its own), else the CPU.

    Raises:
        UsageError: there is no such device here.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and distributed.world_size > 1:
        wanted = f"cuda:{distributed.local_rank}"
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device: {wanted!r} is not usable here ({reason})") from error
    return device
