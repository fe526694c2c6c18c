"""Every sample of a dataset read once: what it holds, and what looks wrong."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, final

import attrs
import numpy as np
import torch
from torch.utils.data import DataLoader

from mtlcore.config import ChosenData
from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datacheck.counting import SplitCount
from mtlcore.datacheck.findings import Counted, Finding, find
from mtlcore.datacheck.measuring import PartReader
from mtlcore.engine import open_dataset
from mtlcore.errors import MtlError, UsageError
from mtlcore.loading import lost_workers_told
from mtlcore.system import leave_to_parent, signals_blocked
from mtlcore.tasks import Task

_NEEDED = ("train", "val")
_PARTS, _LARGEST_PART = 100, 256
_PICTURES = 6


class Progress(Protocol):
    """What is told how far a check is."""

    def start(self, name: str, total: int) -> None:
        """Show that a split with so many samples begins."""

    def advance(self, samples: int) -> None:
        """Show that so many more samples are done."""


@final
@attrs.frozen(kw_only=True)
class SplitCheck:
    """What a split holds.

    Args:
        name: of the split.
        samples: how many were to be read.
        available: how many there are.
        count: what they hold.
        shown: a few of them.
    """

    name: str
    samples: int
    available: int
    count: SplitCount
    shown: tuple[Sample, ...]


@final
@attrs.frozen(kw_only=True)
class DataCheck:
    """What a dataset holds, and what looks wrong.

    Args:
        dataset: its name.
        root: where it lies.
        input_kind: what its inputs are.
        size: to which images are resized; None: to none.
        tasks: that were checked.
        splits: that were read.
        absent: name of a split that there might be -> why it is not there.
        findings: what looks wrong.
        notes: what the reader of the dataset told.
    """

    dataset: str
    root: str | None
    input_kind: str
    size: tuple[int, int] | None
    tasks: tuple[Task, ...]
    splits: tuple[SplitCheck, ...]
    absent: dict[str, str]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def wrong(self) -> bool:
        """Whether something is wrong, and not merely odd."""
        return any(finding.level == "wrong" for finding in self.findings)


def check_data(
    chosen: ChosenData,
    progress: AbstractContextManager[Progress],
    splits: Sequence[str] = (),
    workers: int | None = None,
) -> DataCheck:
    """Read every sample of a dataset once and say what it holds.

    Labels are those that the files have, at their own size: no regime hides some, nothing is
    resized or augmented. Limits (`data.train`, `data.val`) hold.

    Args:
        chosen: the data.
        progress: is told how far it is.
        splits: that are read; none: training, validation and what else the dataset names and has.
        workers: processes that read; None: as many as there are processors.

    Raises:
        UsageError: there is no such split, no split can be opened, or labels are what teachers say.
        ConfigError: the dataset refuses its settings.
        DataError: no split can be opened.
    """
    target: type[Dataset] = chosen.dataset.component.load()
    names = [*splits] or list(dict.fromkeys([*_NEEDED, *target.splits]))
    counted: dict[str, Counted] = {}
    checks: list[SplitCheck] = []
    absent: dict[str, str] = {}
    findings: list[Finding] = []
    errors: list[MtlError] = []
    size = chosen.data.size or target.default_size(chosen.data.root, **chosen.dataset.settings)
    with warnings.catch_warnings(record=True) as told, progress as shown:
        warnings.simplefilter("always", UserWarning)
        for name in names:
            try:
                dataset = _open(chosen, name)
            except (DataError, UsageError) as error:
                errors.append(error)
                if name not in _NEEDED and name not in splits:
                    absent[name] = str(error)
                elif isinstance(error, DataError):
                    findings.append(
                        Finding(level="wrong", kind="no-split", split=name, text=str(error))
                    )
                else:
                    raise
                continue
            one, check = _count(dataset, name, chosen, shown, _processes(workers))
            counted[name] = one
            checks.append(check)
        if not counted:
            raise errors[0]
        findings += find(counted, size)
    for other in (w for w in told if w.category is not UserWarning):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    kind = next(iter(counted.values())).dataset.input_kind
    return DataCheck(
        dataset=chosen.dataset.component.spec.name,
        root=chosen.data.root,
        input_kind=kind,
        size=size,
        tasks=chosen.tasks,
        splits=tuple(checks),
        absent=absent,
        findings=tuple(findings),
        notes=tuple(dict.fromkeys(str(w.message) for w in told if w.category is UserWarning)),
    )


def _open(chosen: ChosenData, name: str) -> Dataset:
    limit = {"train": chosen.data.train, "val": chosen.data.val}.get(name)
    target: type[Dataset] = chosen.dataset.component.load()
    if target.unlimited and limit is None:
        limit = chosen.data.val
    dataset = open_dataset(chosen.data, chosen.dataset, name, limit)
    if dataset.needs_teachers:
        raise UsageError(
            f"data.name: labels of {chosen.data.name!r} are what teachers say "
            f"({', '.join(dataset.needs_teachers)}); check the data that it is made of"
        )
    if not len(dataset):
        where = f"{chosen.data.root}: " if chosen.data.root else ""
        raise DataError(f"{where}the split {name!r} holds no sample")
    return dataset


def _count(
    dataset: Dataset, name: str, chosen: ChosenData, progress: Progress, workers: int
) -> tuple[Counted, SplitCheck]:
    rounds = 1 + dataset.repeats
    available = len(dataset) // rounds
    limit = {"train": chosen.data.train, "val": chosen.data.val}.get(name)
    examples = available if limit is None else min(limit, available)
    first = [number * available // examples for number in range(examples)]
    used = [turn * available + example for turn in range(rounds) for example in first]
    count = SplitCount(chosen.tasks)
    progress.start(name, len(used))
    step = max(1, min(_LARGEST_PART, len(used) // _PARTS))
    parts = [used[start : start + step] for start in range(0, len(used), step)]
    loader = DataLoader(
        PartReader(dataset, chosen.tasks, parts),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=min(workers, len(parts) - 1),
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),
    )
    with signals_blocked():  # workers must not start with this process's handlers
        counted = iter(loader)
    with lost_workers_told():
        for part, numbers in zip(counted, parts, strict=True):
            count.merge(part)
            progress.advance(len(numbers))
    one = Counted(dataset=dataset, count=count, used=used, examples=examples)
    readable = np.flatnonzero(one.digests()[:, 0]).tolist()
    number = min(_PICTURES, len(readable))
    chosen_ones = [used[readable[k * len(readable) // number]] for k in range(number)]
    check = SplitCheck(
        name=name,
        samples=len(used),
        available=len(dataset),
        count=count,
        shown=tuple(dataset[index] for index in chosen_ones),
    )
    return one, check


def _processes(workers: int | None) -> int:
    if workers is not None:
        return workers
    usable = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return len(usable)


def _as_it_is(part: Any) -> Any:
    return part


def _leave_signals_to_parent(_worker: int) -> None:
    leave_to_parent()
