"""From plans to batches: opening datasets, fitting sizes, augmenting, workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import attrs
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mtlcore.data import Batch, DataError, Dataset, Sample, collate, empty_batch
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
        size: height and width to fit every image to; None: as they are.
        limit: use this many samples at most, evenly spread over the split; None: all.

    Attributes:
        available: samples that the dataset has.
        regime: which labels may be seen; None: all.
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

    def sample(self, index: int) -> Sample:
        """A sample at the run's size with the run's tasks only."""
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
        if self._size is not None and tuple(sample.inputs.shape[1:]) != self._size:
            sample = resize(sample, self._tasks, self._size)
        return sample


class PlanReader(TorchDataset[Loaded]):
    """Loads the batch of a plan; runs inside workers.

    Args:
        splits: by name.
        tasks: to collate.
        augmentation: for the batches that ask for it.
        views: of each sample in the batches that ask for augmentation. View 0 is what a batch of
            one view would hold, and every other one an augmentation of view 0.
        on_error: "stop" raises at a sample that cannot be read, "skip" leaves it out and says so.
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
            batch = collate(samples, self.tasks) if samples else None
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
            collate([sample], self.tasks)  # a label that does not fit must not cost the batch
        views = [sample]
        if change is not None:
            for number in range(1, self._views):
                view = change(sample, self.tasks, others)
                views.append(attrs.evolve(view, view=number))
        return views


class Loader:
    """Loads plans ahead of the step that needs them.

    Args:
        reader: what loads.
        workers: processes; 0 loads in this one.
        on_error: as in `PlanReader`.

    Attributes:
        skipped: messages of the samples left out so far.
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
        """The batch of each plan, in order.

        Raises:
            DataError: a sample cannot be read, and the run is to stop at that.
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
        """Step plans with their batches; None where a batch has no readable sample.

        Args:
            plans: what to load, in order.
            shared: other processes load their part of them: a batch without a sample is an empty
                one, because theirs may have some.
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
    """The error that ends a run at a sample, with the way round it."""
    return DataError(f"{error}\n(--set data.on_error=skip leaves such samples out)")


@contextmanager
def lost_workers_told() -> Iterator[None]:
    """Tell of a worker that was killed; torch raises that wherever the process then is.

    Raises:
        MtlError: with what helps where memory was short.
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
