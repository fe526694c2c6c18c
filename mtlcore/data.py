"""Samples and batches: one kind of missing label, whatever the reason it is missing.

A label that was never made, an ignore value, a hole of the sensor and a padded pixel all become
`valid == False`, and `collate` writes the task's safe value there, so that no loss sees garbage.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mtlcore.errors import MtlError, UsageError, did_you_mean
from mtlcore.tasks import Task

__all__ = [
    "Batch",
    "DataError",
    "Dataset",
    "Sample",
    "check_split",
    "collate",
    "empty_batch",
    "safe_target",
]


class DataError(MtlError):
    """A sample that cannot be read or does not fit its task; the message begins with its path."""


@attrs.frozen(kw_only=True)
class Sample:
    """One example.

    Args:
        inputs: float32; an image is (3, H, W) in [0, 1].
        targets: per task its label, shaped `task.target_shape((H, W))`; a missing task has none.
        valid: per task of `targets` a boolean mask, shaped `task.valid_shape((H, W))`.
        key: where it comes from (a path, or "rooms/train/17"), for messages and pictures.
        sources: where labels come from that have files of their own, by task, for messages.
        view: which view of its example this is; supervised losses use view 0 only.
        meta: what a view needs to be told apart: where `Augmentation` made it of view 0, the crop.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    key: str
    sources: Mapping[str, str] = attrs.field(factory=dict)
    view: int = 0
    meta: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Batch:
    """Samples of one step, every task filled in.

    Where samples have several views, all views 0 come first, then all views 1 in the same order of
    samples, and so on.

    Args:
        inputs: (B, ...) float32.
        targets: per task `(B, *target_shape)`, safe values where not valid.
        valid: per task `(B, *valid_shape)` boolean.
        count: per task the number of valid elements in view 0, a Python int made in `collate`:
            asking what is present never waits for a device.
        labelled: per task and sample (of every view) whether it has a valid element.
        view: per sample which view it is.
        keys: the samples' keys.
        meta: the samples' meta.
    """

    inputs: Tensor
    targets: dict[str, Tensor]
    valid: dict[str, Tensor]
    count: dict[str, int]
    labelled: dict[str, tuple[bool, ...]]
    view: tuple[int, ...]
    keys: tuple[str, ...]
    meta: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if self.inputs.device == device:
            return self
        return attrs.evolve(
            self,
            inputs=self.inputs.to(device, non_blocking=True),
            targets={name: t.to(device, non_blocking=True) for name, t in self.targets.items()},
            valid={name: v.to(device, non_blocking=True) for name, v in self.valid.items()},
        )

    def first_views(self) -> Batch:
        """Its views 0, in order: what supervised losses see; itself where there are no others."""
        rows = [i for i, view in enumerate(self.view) if view == 0]
        if len(rows) == len(self):
            return self
        return attrs.evolve(
            self,
            inputs=self.inputs[rows],
            targets={name: target[rows] for name, target in self.targets.items()},
            valid={name: valid[rows] for name, valid in self.valid.items()},
            labelled={name: tuple(known[i] for i in rows) for name, known in self.labelled.items()},
            view=(0,) * len(rows),
            keys=tuple(self.keys[i] for i in rows),
            meta=tuple(self.meta[i] for i in rows),
        )

    def present(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Those of `tasks` that have at least one valid label in this batch."""
        return tuple(name for name in tasks if self.count[name] > 0)


class Dataset(abc.ABC):
    """A source of samples: `Dataset(root, split, **settings)`; opening it reads no sample.

    `root` is a local path or an fsspec URL, or None for data that needs no files.

    Attributes:
        splits: their names.
        renders_size: takes a keyword `size` (height, width) and gives samples of that size, so
            that the core need not resize them.
        unlimited: takes a keyword `samples`, the number to make, because it has no end of its own.
    """

    splits: tuple[str, ...] = ("train", "val")
    renders_size: bool = False
    unlimited: bool = False

    @classmethod
    @abc.abstractmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """The tasks it has labels for, without touching a sample."""

    @classmethod
    def default_size(cls, root: str | None, **settings: Any) -> tuple[int, int] | None:
        """Height and width that suit it where `data.size` names none; None: the samples' own."""
        return None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of samples in the split."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """One sample at its own size.

        Raises:
            DataError: it cannot be read; the message names the file and the reason.
        """


def check_split(dataset: str, split: str, splits: Sequence[str]) -> None:
    """Refuse a split that a dataset does not have.

    Raises:
        UsageError: naming those it has.
    """
    if split not in splits:
        raise UsageError(
            f"{dataset} has no split {split!r}, only {', '.join(splits)}"
            + did_you_mean(split, splits)
        )


def collate(samples: Sequence[Sample], tasks: Sequence[Task]) -> Batch:
    """Stack samples of one size; fill in missing labels; count the valid ones.

    Raises:
        DataError: inputs of different shapes, a label whose shape, class or value does not fit
            its task (out of range, NaN or infinite where valid).
    """
    first = samples[0].inputs.shape
    for sample in samples:
        if sample.inputs.shape != first:
            raise DataError(
                f"{sample.key}: input shape {tuple(sample.inputs.shape)} differs from "
                f"{tuple(first)} ({samples[0].key}) in one batch; set data.size"
            )
        if not bool(torch.isfinite(sample.inputs).all()):
            raise DataError(f"{sample.key}: the input holds NaN or infinite values")
    size = tuple(first[1:])
    view = tuple(sample.view for sample in samples)
    supervised = [i for i, number in enumerate(view) if number == 0]
    targets, valid, count, labelled = {}, {}, {}, {}
    for task in tasks:
        pairs = [_checked(sample, task, size) for sample in samples]
        targets[task.name] = torch.stack([target for target, _ in pairs])
        valid[task.name] = torch.stack([mask for _, mask in pairs])
        count[task.name] = int(valid[task.name][supervised].sum())
        labelled[task.name] = tuple(bool(mask.any()) for _, mask in pairs)
    return Batch(
        inputs=torch.stack([sample.inputs for sample in samples]),
        targets=targets,
        valid=valid,
        count=count,
        labelled=labelled,
        view=view,
        keys=tuple(sample.key for sample in samples),
        meta=tuple(sample.meta for sample in samples),
    )


def empty_batch(tasks: Sequence[Task]) -> Batch:
    """A batch without samples: the share of a process that has none of a small batch."""
    return Batch(
        inputs=torch.empty(0),
        targets={},
        valid={},
        count={task.name: 0 for task in tasks},
        labelled={task.name: () for task in tasks},
        view=(),
        keys=(),
        meta=(),
    )


def safe_target(task: Task, size: tuple[int, ...]) -> Tensor:
    """A target in which every value is the task's safe value."""
    shape = task.target_shape(size)
    fill = torch.tensor(task.safe_value, dtype=getattr(torch, task.dtype))
    if len(task.safe_value) == 1:
        return fill.expand(shape).clone() if shape else fill[0]
    return fill.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()


def _checked(sample: Sample, task: Task, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    safe = safe_target(task, size)
    if task.name not in sample.targets:
        return safe, torch.zeros(task.valid_shape(size), dtype=torch.bool)
    target, valid = sample.targets[task.name], sample.valid[task.name]
    where = sample.sources.get(task.name, sample.key)
    if target.shape != safe.shape or valid.shape != task.valid_shape(size):
        raise DataError(
            f"{where}: {task.name} label has shape {tuple(target.shape)} (mask "
            f"{tuple(valid.shape)}) where {tuple(safe.shape)} was expected"
        )
    mask = valid if task.layout != "map" or target.shape == valid.shape else valid.unsqueeze(0)
    target = torch.where(mask, target.to(safe.dtype), safe)
    if task.dtype == "int64":
        low, high = (int(target.min()), int(target.max())) if target.numel() else (0, 0)
        if low < 0 or high >= task.channels:
            raise DataError(
                f"{where}: {task.name} label {low if low < 0 else high} is out of range; "
                f"the task has classes 0 to {task.channels - 1} "
                "(declare other values as invalid)"
            )
    elif not bool(torch.isfinite(target).all()):
        raise DataError(
            f"{where}: {task.name} label is NaN or infinite where it is marked valid "
            "(declare such values as invalid)"
        )
    return target, valid
