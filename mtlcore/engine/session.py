"""A run in progress: everything that it works with, built from its configuration."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import final

import attrs
import torch
from torch import Tensor

from mtlcore.config import RunConfig
from mtlcore.data import Batch
from mtlcore.display import Display
from mtlcore.distributed import SINGLE_PROCESS, Distributed
from mtlcore.engine.averaging import AveragedModel
from mtlcore.engine.building import build_learner, make_loader, open_splits, pick_device
from mtlcore.engine.compiling import compile_backbone
from mtlcore.engine.planning import Planning
from mtlcore.engine.progress import Progress
from mtlcore.engine.teachers import Teachers
from mtlcore.engine.units import fit_units
from mtlcore.episodes import BatchPlan, EpisodeSampler, in_order
from mtlcore.learner import Learner
from mtlcore.models import Frozen
from mtlcore.optimizers import Optimizer
from mtlcore.storage import RunDirectory
from mtlcore.teachers import Teacher

# Constants, and what balancers fit, are fitted on at most this many training samples, evenly
# spread: medians keep labels.
_FITTING_SAMPLES = 1000


@attrs.frozen
class _LazyBatches:
    """Batches that are loaded only when somebody iterates, each time from the first one."""

    load: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.load()


@final
class Session:
    """The parts of one run, shared by all that train, evaluate, record and save it.

    Args:
        config: A checked and complete configuration.
        directory: Where everything is written.
        display: What a person sees.
        distributed: The processes that train together. Each has a directory; only that of the main
            process stays.

    Attributes:
        device: Where the learner is.
        splits: The training and the validation split.
        learner: All that learns.
        average: The averaged copy of its model; None if the run keeps none.
        predict: Predicts tasks from inputs by the model that is evaluated, see
            `TrainingConfig.evaluate_ema`.
        teachers: The frozen models that it learns from.
        sampler: Plans the steps.
        planning: Draws the plans; part of every checkpoint.
        loader: Loads plans as batches.
        optimizer: Turns a loaded plan into an update.
        progress: Where the run stands; part of every checkpoint.
        thawing: What learns from `training.freeze_until` on; None where nothing does, or it does.
        backbone_is_frozen: Whether the backbone enters no phase, as it does not learn.
        frozen: Frozen tensors and what they hold, where a phase could change them; None before the
            first step.
        global_batch_size: Samples of a step over all processes.
        steps_per_epoch: Updates of one epoch.
        epochs: Epochs of the whole run.
        balancing_generator: Source of randomness of balancers; the same on every rank.

    Raises:
        UsageError: Components that cannot work together, or not in several processes.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        display: Display,
        distributed: Distributed = SINGLE_PROCESS,
    ) -> None:
        self.config, self.directory, self.display = config, directory, display
        self.distributed = distributed
        self.device = pick_device(config.device, distributed)
        self.splits = open_splits(config)
        torch.manual_seed(config.seed)
        self.learner: Learner = build_learner(config, distributed).to(self.device)
        sizes = {name: len(split) for name, split in self.splits.items()}
        self.sampler: EpisodeSampler = config.episodes.make(config.learning, sizes)
        self.global_batch_size = config.training.batch_size * distributed.world_size
        validation = self.learner.balancing.validation
        self.planning = Planning(
            self.sampler,
            2 * config.seed + 2,
            self.global_batch_size,
            config.training.accumulate,
            self.learner.balancing.batches,
            None if validation is None else (validation, sizes[validation]),
        )
        self.steps_per_epoch = self.planning.steps_per_epoch
        self.epochs = self._number_of_epochs()
        self.balancing_generator = torch.Generator().manual_seed(2 * config.seed + 1)
        on_gpu = self.device.type == "cuda"
        self.loader = make_loader(config, self.splits, self.learner.views, pin_memory=on_gpu)
        if config.training.compile:
            compile_backbone(self.learner)
        self.learner.balancing.prepare(config.tasks, _LazyBatches(self._batches_for_balancers))
        self.learner.to(self.device)
        decay = config.training.ema
        self.average = None if decay is None else AveragedModel(self.learner.model, decay)
        averaged = self.average and Teacher(self.average.model, self.learner.dtype)
        self.predict = self.learner.predict
        if averaged is not None and config.training.evaluate_ema:
            self.predict = averaged.predict
        self.teachers = Teachers(
            config, self.learner, [*self.splits.values()], self.device, averaged
        )
        for name in self.teachers.unused:
            display.warn(f"teachers.{name}: nobody asks for this teacher")
        self._fit_units()
        if not distributed.is_main_process:
            # All ranks start from the same weights, and draw dropout each for itself.
            torch.manual_seed(config.seed + distributed.rank)
        self.optimizer: Optimizer = config.optimizer.make(self.learner)
        self.thawing: Frozen | None = None
        if config.training.freeze_until is not None:
            # The optimizer knows what will learn later; it leaves alone what has no gradient.
            self.thawing = self.learner.model.freeze(config.freeze)
        self.backbone_is_frozen = self.learner.model.backbone_is_frozen
        self.frozen: list[tuple[Tensor, Tensor]] | None = None
        self.progress = Progress()
        self._started = time.monotonic()

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def seconds(self) -> float:
        """Time spent so far, that of earlier processes of this run included."""
        return self.progress.seconds + time.monotonic() - self._started

    def fitting_plans(self) -> tuple[list[BatchPlan], int]:
        """Return evenly spread training samples to fit something on, and their number."""
        size = len(self.splits["train"])
        used = min(size, _FITTING_SAMPLES)
        return in_order("train", size, self.config.training.batch_size, used), used

    def _number_of_epochs(self) -> int:
        epochs, steps = self.config.training.epochs, self.config.training.steps
        limits = [epochs, None if steps is None else -(-steps // self.steps_per_epoch)]
        return min(limit for limit in limits if limit is not None)

    def _fit_units(self) -> None:
        """Let the labels of the training split say what the standard unit of a task is."""
        names = [task.name for task in self.config.tasks if task.standardise]
        if names:
            plans, used = self.fitting_plans()
            self.display.note(
                f"standardising {', '.join(names)} by the labels of {used} training samples"
            )
            fit_units(self.learner.model, self.loader.batches(plans))

    def _batches_for_balancers(self) -> Iterator[Batch]:
        plans, used = self.fitting_plans()
        self.display.note(f"the balancer looks at the labels of {used} training samples")
        for batch in self.loader.batches(plans):
            if batch is not None:
                yield batch
