"""From plans to batches: opening datasets, fitting sizes, augmenting, workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import attrs
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mtlcore.data import (
    Batch,
    DataError,
    Dataset,
    Inputs,
    Sample,
    collate,
    empty_batch,
    image_size,
)
from mtlcore.episodes import BatchPlan, LoadedPlan, StepPlan
from mtlcore.errors import MtlError, describe
from mtlcore.loading.regimes import LabelRegime
from mtlcore.loading.transforms import Augmentation, resize
from mtlcore.system import leave_to_parent, signals_blocked
from mtlcore.tasks import Task

OnError = Literal["stop", "skip"]

# Among the lower 32 bits: torch's generator of the processor ignores all others of a seed.
_OTHER_VIEWS = 0x9E3779B9


@attrs.frozen(kw_only=True)
class Loaded:
    """A batch, None where no sample of it could be read, and what went wrong."""

    batch: Batch | None
    errors: tuple[str, ...] = ()


class Split:
    """One split of a dataset as the run uses it.

    Args:
        dataset: where samples come from.
        tasks: that the run learns.
        size: height and width to resize every image to; None: none is resized.
        limit: largest number of samples to use, spread evenly over the split; None: all.

    Attributes:
        available: number of samples in the dataset.
        regime: which labels are used; None: all.
    """

    def __init__(
        self,
        dataset: Dataset,
        tasks: Sequence[Task],
        size: tuple[int, int] | None,
        limit: int | None,
    ) -> None:
        self._dataset, self._tasks, self._size = dataset, tuple(tasks), size
        self.available = len(dataset)
        self._length = self.available if limit is None else min(limit, self.available)
        self.regime: LabelRegime | None = None

    def __len__(self) -> int:
        return self._length

    @property
    def collate_inputs(self) -> Callable[[Sequence[Inputs]], Inputs]:
        """What makes the inputs of a batch: the dataset's `collate_inputs`."""
        return self._dataset.collate_inputs

    def sample(self, index: int) -> Sample:
        """Return a sample at the run's size, with labels of the run's tasks only."""
        number = index * len(self._dataset) // self._length
        sample = self._dataset[number]
        names = {task.name for task in self._tasks}
        if self.regime is not None:
            names &= self.regime.tasks(index, sample.key)
        sample = attrs.evolve(
            sample,
            targets={name: t for name, t in sample.targets.items() if name in names},
            valid={name: v for name, v in sample.valid.items() if name in names},
        )
        if self._size is not None and image_size(sample.inputs, samples=False) != self._size:
            sample = resize(sample, self._tasks, self._size)
        return sample


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
    """

    def __init__(
        self,
        splits: dict[str, Split],
        tasks: Sequence[Task],
        augmentation: Augmentation | None,
        on_error: OnError,
        views: int = 1,
    ) -> None:
        self._splits, self.tasks = splits, tuple(tasks)
        self._augmentation, self._on_error = augmentation, on_error
        self._views = views

    def __getitem__(self, plan: BatchPlan) -> Loaded:
        # Views beyond the first draw from a stream of their own, so that asking for them leaves
        # view 0 as it was.
        streams = [torch.Generator().manual_seed(plan.seed ^ bits) for bits in (0, _OTHER_VIEWS)]
        views: list[list[Sample]] = []
        errors: list[str] = []
        # An error travels as text: a worker's exception would arrive wrapped in its traceback.
        for index in plan.indices:
            try:
                views.append(self._read(plan, index, *streams))
            except DataError as error:
                errors.append(str(error))
        samples = [view for same in zip(*views, strict=True) for view in same]
        try:
            together = self._splits[plan.split].collate_inputs
            batch = collate(samples, self.tasks, together) if samples else None
        except DataError as error:
            return Loaded(batch=None, errors=(*errors, str(error)))
        return Loaded(batch=batch, errors=tuple(errors))

    def _read(
        self, plan: BatchPlan, index: int, first: torch.Generator, others: torch.Generator
    ) -> list[Sample]:
        sample = self._splits[plan.split].sample(index)
        change = self._augmentation if plan.augment else None
        if change is not None:
            sample = change(sample, self.tasks, first)
        if self._on_error == "skip":
            # A label that does not fit must not cost the batch.
            collate([sample], self.tasks, self._splits[plan.split].collate_inputs)
        views = [sample]
        if change is not None:
            for number in range(1, self._views):
                view = change(sample, self.tasks, others)
                views.append(attrs.evolve(view, view=number))
        return views


class Loader:
    """Loads batches ahead of the step that needs them.

    Args:
        reader: loads one batch.
        workers: number of worker processes; with 0 this process loads.
        on_error: as in `PlanReader`.

    Attributes:
        skipped: messages about the samples that were left out so far.
    """

    def __init__(self, reader: PlanReader, workers: int, on_error: OnError) -> None:
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
            worker_init_fn=_leave_signals_to_parent,
            # Its own generator: the loader draws a seed per epoch, and torch's global stream
            # must not depend on how data is loaded.
            generator=torch.Generator(),
        )

    def batches(self, plans: Sequence[BatchPlan]) -> Iterator[Batch | None]:
        """Yield the batch of each plan, in order; None where it has no readable sample.

        Raises:
            DataError: a sample cannot be read, and `on_error` is "stop".
        """
        self._queue.plans = plans
        for loaded in self._loaded():
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
            yield LoadedPlan(complete, plan.episodes) if whole else None


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


def _leave_signals_to_parent(_worker: int) -> None:
    leave_to_parent()
