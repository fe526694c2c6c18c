"""From plans to batches: opening datasets, fitting sizes, augmenting, workers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import attrs
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mtlcore.data import (
    Batch,
    DataError,
    Dataset,
    Predictor,
    Sample,
    collate,
    complete,
    empty_batch,
)
from mtlcore.episodes import BatchPlan, LoadedPlan, StepPlan
from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.inputs import Inputs, describe_inputs, image_size
from mtlcore.loading.augmentations import BatchAugmentation, SampleAugmentation
from mtlcore.loading.cache import SampleCache
from mtlcore.loading.regimes import LabelRegime
from mtlcore.loading.transforms import Augmentation, resize
from mtlcore.system import leave_to_parent, signals_blocked
from mtlcore.tasks import Task

OnError = Literal["stop", "skip"]

# Streams of a batch plan's seed: the first is for scaling and flipping, the second for other views,
# and from here on each augmentation has one.
_AUGMENTATIONS = 2


@attrs.frozen(kw_only=True)
class Loaded:
    """A batch, None where no sample of it could be read, and what went wrong.

    Args:
        batch: the batch.
        errors: one line for each sample that could not be read.
        refused: why samples of this sort cannot be augmented as the configuration says.
    """

    batch: Batch | None
    errors: tuple[str, ...] = ()
    refused: str | None = None

    def pin_memory(self) -> Loaded:
        """Return it with its batch in pinned memory; torch's loader calls this."""
        return self if self.batch is None else attrs.evolve(self, batch=self.batch.pin_memory())


class Split:
    """One split of a dataset as the run uses it.

    Args:
        dataset: where samples come from.
        tasks: that the run learns.
        size: height and width to resize every image to; None: none is resized.
        limit: largest number of examples to use, spread evenly over the split; None: all.

    Attributes:
        available: number of examples in the dataset: samples that repeat none.
        examples: number of those that are used. Those that repeat them follow, round after round.
        regime: which labels of the examples are used; None: all.
        cache: where samples are kept once read, and the number of the first there; None: nowhere.
    """

    def __init__(
        self,
        dataset: Dataset,
        tasks: Sequence[Task],
        size: tuple[int, int] | None,
        limit: int | None,
    ) -> None:
        self._dataset, self._tasks, self._size = dataset, tuple(tasks), size
        self._names = {task.name for task in tasks}
        self._rounds = 1 + dataset.repeats
        self.available = len(dataset) // self._rounds
        self.examples = self.available if limit is None else min(limit, self.available)
        self.regime: LabelRegime | None = None
        self.cache: tuple[SampleCache, int] | None = None

    def __len__(self) -> int:
        return self.examples * self._rounds

    @property
    def self_labelled(self) -> tuple[str, ...]:
        """Names of the tasks whose labels the dataset makes of the inputs."""
        return self._dataset.self_labelled

    @property
    def collate_inputs(self) -> Callable[[Sequence[Inputs]], Inputs]:
        """What makes the inputs of a batch: the dataset's `collate_inputs`."""
        return self._dataset.collate_inputs

    @property
    def needs_teachers(self) -> tuple[str, ...]:
        """Names of the teachers that the dataset asks for."""
        return self._dataset.needs_teachers

    def take_teachers(self, teachers: Mapping[str, Predictor]) -> None:
        """Hand the dataset the teachers that it has asked for."""
        self._dataset.teachers = teachers

    def names(self) -> list[str] | None:
        """Return the names of the examples, as lists of labels use them; None: not known yet."""
        names = [self._dataset.name_of(self._number(index)) for index in range(self.examples)]
        known = [name for name in names if name is not None]
        return known if len(known) == len(names) else None

    def sample(self, index: int) -> Sample:
        """Return a sample at the run's size, with labels of the run's tasks only."""
        if self.cache is None:
            sample = self._read(index)
        else:
            cache, first = self.cache
            sample = cache.get(first + index, partial(self._read, index))
        if self.regime is None:
            return sample
        kept = self.regime.tasks(index, sample.key)
        return _with_labels(sample, kept.union(self.self_labelled))

    def _read(self, index: int) -> Sample:
        """Return a sample as it is kept: whatever the regime hides."""
        sample = _with_labels(self._dataset[self._number(index)], self._names)
        if self._size is not None and image_size(sample.inputs, samples=False) != self._size:
            sample = resize(sample, self._tasks, self._size)
        return sample

    def _number(self, index: int) -> int:
        """Return the number of a sample in the dataset."""
        turn, example = divmod(index, self.examples)
        return turn * self.available + example * self.available // self.examples


def _with_labels(sample: Sample, names: Collection[str]) -> Sample:
    if all(name in names for name in (*sample.targets, *sample.valid)):
        return sample
    return attrs.evolve(
        sample,
        targets={name: t for name, t in sample.targets.items() if name in names},
        valid={name: v for name, v in sample.valid.items() if name in names},
    )


class PlanReader(TorchDataset[Loaded]):
    """Loads the batch of a plan; runs inside worker processes.

    Args:
        splits: name -> split.
        tasks: of the batches.
        augmentation: for plans with `augment`; None: there is none.
        views: number of views of each sample, for plans with `augment`. View 0 is the same as with
            one view; each other view is an augmentation of view 0.
        on_error: what to do at a sample that cannot be read: "stop" raises an error, "skip" leaves
            the sample out and reports it.
        changes: further augmentations of view 0, in order, for plans with `augment`. Each draws
            from a stream of its own.
    """

    def __init__(
        self,
        splits: dict[str, Split],
        tasks: Sequence[Task],
        augmentation: Augmentation | None,
        on_error: OnError,
        views: int = 1,
        changes: Sequence[SampleAugmentation | BatchAugmentation] = (),
    ) -> None:
        self._splits, self.tasks = splits, tuple(tasks)
        self._augmentation, self._on_error = augmentation, on_error
        self._views, self._changes = views, tuple(changes)

    def __getitem__(self, plan: BatchPlan) -> Loaded:
        first = _stream(plan.seed, 0)
        samples: list[Sample] = []
        errors: list[str] = []
        # An error travels as text: a worker's exception would arrive wrapped in its traceback.
        for index in plan.indices:
            try:
                samples.append(self._read(plan, index, first))
            except DataError as error:
                errors.append(str(error))
        try:
            if plan.augment:
                samples = self._augmented(samples, plan.seed)
            together = self._splits[plan.split].collate_inputs
            batch = collate(samples, self.tasks, together) if samples else None
        except DataError as error:
            return Loaded(batch=None, errors=(*errors, str(error)))
        except UsageError as error:
            return Loaded(batch=None, refused=str(error))
        return Loaded(batch=batch, errors=tuple(errors))

    def _read(self, plan: BatchPlan, index: int, generator: torch.Generator) -> Sample:
        sample = self._splits[plan.split].sample(index)
        if self._augmentation is not None and plan.augment:
            sample = self._augmentation(sample, self.tasks, generator)
        if self._on_error == "skip":
            # A label that does not fit must not cost the batch.
            collate([sample], self.tasks, self._splits[plan.split].collate_inputs)
        return sample

    def _augmented(self, samples: list[Sample], seed: int) -> list[Sample]:
        """Change samples as the configuration lists it, and add their other views."""
        # What stays as it is meets no change: it is not pasted into another image either.
        places = [place for place, sample in enumerate(samples) if not sample.as_is]
        changed = [samples[place] for place in places]
        for number, change in enumerate(self._changes):
            generator = _stream(seed, _AUGMENTATIONS + number)
            if isinstance(change, SampleAugmentation):
                changed = [change(sample, generator) for sample in changed]
            elif changed and _may_be_mixed(changed):
                changed = change([complete(s, self.tasks) for s in changed], generator)
        samples = [*samples]
        for place, sample in zip(places, changed, strict=True):
            samples[place] = sample
        return samples + self._other_views(samples, seed)

    def _other_views(self, samples: Sequence[Sample], seed: int) -> list[Sample]:
        change = self._augmentation
        if self._views == 1 or change is None:
            return []
        # From a stream of their own, so that asking for them leaves view 0 as it was.
        generator = _stream(seed, 1)
        views = [
            [attrs.evolve(change(sample, self.tasks, generator), view=number)
             for number in range(1, self._views)]
            for sample in samples
        ]  # fmt: skip
        return [view for same in zip(*views, strict=True) for view in same]


class Loader:
    """Loads batches ahead of the step that needs them.

    Args:
        reader: loads one batch.
        workers: number of worker processes; with 0 this process loads.
        on_error: as in `PlanReader`.
        pin_memory: whether batches lie where a GPU can copy them while it computes.

    Attributes:
        skipped: messages about the samples that were left out so far.
    """

    def __init__(
        self, reader: PlanReader, workers: int, on_error: OnError, pin_memory: bool = False
    ) -> None:
        self._queue = _Queue()
        self._tasks = reader.tasks
        self._on_error = on_error
        self.skipped: list[str] = []
        self._loader: DataLoader[Loaded] = DataLoader(
            reader,
            batch_size=None,
            sampler=self._queue,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_parent,
            # Its own generator: the loader draws a seed per epoch, and torch's global stream
            # must not depend on how data is loaded.
            generator=torch.Generator(),
        )

    def batches(self, plans: Sequence[BatchPlan]) -> Iterator[Batch | None]:
        """Yield the batch of each plan, in order; None where it has no readable sample.

        Raises:
            DataError: a sample cannot be read, and `on_error` is "stop".
            UsageError: an augmentation cannot change samples of this sort.
        """
        self._queue.plans = plans
        for loaded in self._loaded():
            if loaded.refused is not None:
                raise UsageError(loaded.refused)
            if loaded.errors and self._on_error == "stop":
                raise stop_at(loaded.errors[0])
            self.skipped += loaded.errors
            yield loaded.batch

    def _loaded(self) -> Iterator[Loaded]:
        # Workers must not start with this process's handlers.
        with signals_blocked():
            loaded = iter(self._loader)
        with lost_workers_told():
            yield from loaded

    def plans(self, plans: Sequence[StepPlan], shared: bool = False) -> Iterator[LoadedPlan | None]:
        """Yield step plans with their batches; None where a batch has no readable sample.

        Args:
            plans: what to load, in order.
            shared: whether other processes load their share of the same plans. A batch without
                samples is then an empty one, as theirs may have some.
        """
        batches = self.batches([batch for plan in plans for batch in plan.batches])
        instead = empty_batch(self._tasks) if shared else None
        for plan in plans:
            loaded = [next(batches) or instead for _ in plan.batches]
            complete = tuple(batch for batch in loaded if batch is not None)
            whole = len(complete) == len(loaded)
            yield LoadedPlan(complete, plan.episodes, plan.validation) if whole else None


def _may_be_mixed(samples: Sequence[Sample]) -> bool:
    """Return whether samples can be one batch; of images that differ in shape, collate tells."""
    shapes = {describe_inputs(sample.inputs) for sample in samples}
    return (
        len(shapes) == 1
        or not isinstance(samples[0].inputs, Tensor)
        or samples[0].inputs.dim() != 3
    )


class _Queue(Iterable[BatchPlan]):
    """What the loader reads next; workers live longer than an epoch, so it can be refilled."""

    def __init__(self) -> None:
        self.plans: Sequence[BatchPlan] = ()

    def __iter__(self) -> Iterator[BatchPlan]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)


def stop_at(error: DataError | str) -> DataError:
    """Return the error that ends a run at an unreadable sample, with the setting that skips it."""
    return DataError(f"{error}\n(--set data.on_error=skip leaves such samples out)")


@contextmanager
def lost_workers_told() -> Iterator[None]:
    """Explain the error that torch raises when a worker process was killed.

    Raises:
        MtlError: a worker was killed; the message says what helps where memory is short.
    """
    try:
        yield
    except RuntimeError as error:
        # torch has no type of its own for this.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise MtlError(
            f"a process that loads data ended of itself ({describe(error)}); where memory is "
            "short, a smaller training.batch_size or data.workers=0 needs less"
        ) from error


def _stream(seed: int, number: int) -> torch.Generator:
    """Return one of the independent sources of randomness that a batch plan's seed has."""
    # Among the lower 32 bits: torch's generator of the processor ignores all others of a seed.
    return torch.Generator().manual_seed(seed ^ (number * 0x9E3779B9 & 0xFFFFFFFF))


def _leave_signals_to_parent(_worker: int) -> None:
    leave_to_parent()
