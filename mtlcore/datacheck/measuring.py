"""One part of a split read and counted; runs inside worker processes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from mtlcore.data import DataError, Dataset, Sample, collate, complete, outside_kind, safe_target
from mtlcore.datacheck.counting import Example, InputCount, SplitCount, TaskCount
from mtlcore.datacheck.histograms import Values
from mtlcore.errors import MtlError, describe
from mtlcore.inputs import describe_inputs, image_size, input_tensors
from mtlcore.tasks import Task

_SHOWN = 8  # values that a message lists
_TOGETHER = 2**24  # bytes of samples that are held at a time, however many these are


@final
class PartReader(TorchDataset[SplitCount]):
    """Reads and counts the samples of a split, a part at a time.

    Args:
        dataset: the split.
        tasks: labels of other tasks are left out.
        samples: numbers of the samples of each part.
    """

    def __init__(
        self, dataset: Dataset, tasks: tuple[Task, ...], samples: Sequence[Sequence[int]]
    ) -> None:
        self._dataset, self._tasks, self._parts = dataset, tasks, samples

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, part: int) -> SplitCount:
        count = SplitCount(self._tasks)
        waiting: list[Sample | None] = []
        size = 0
        for index in self._parts[part]:
            sample = self._read(index, count)
            waiting.append(sample)
            size += 0 if sample is None else _size(sample)
            if size > _TOGETHER:
                self._count(waiting, count)
                waiting, size = [], 0
        self._count(waiting, count)
        return count

    def _count(self, read: list[Sample | None], count: SplitCount) -> None:
        samples = self._usable(read, count)
        digests = np.zeros((len(samples), 2), dtype=np.uint64)
        known = [sample for sample in samples if sample is not None]
        for place, sample in enumerate(samples):
            if sample is not None:
                key = sample.key.encode("utf-8", "replace")
                digests[place] = _digest(key), _content(sample)
        count.read += len(known)
        count.digests.append(digests)
        _count_inputs(count.inputs, known)
        for task in self._tasks:
            if task.layout == "map":
                for sample in known:
                    _count_map(count.tasks[task.name], sample)
            else:
                _count_rows(count.tasks[task.name], known)

    def _read(self, index: int, count: SplitCount) -> Sample | None:
        """Return a sample; None, and the reason counted, where it cannot be read.

        Whatever a reader raises is told of its sample: one that is broken must not hide the others.
        """
        try:
            return self._dataset[index]
        except MemoryError:
            raise
        except DataError as error:
            message = str(error)
        except Exception as error:
            told = str(error) if isinstance(error, MtlError) else describe(error)
            message = f"sample {index}: the dataset ended in an error of its own: {told}"
        # Messages begin with the file.
        count.unreadable.add(Example(file=message.partition(": ")[0], message=message))
        return None

    def _usable(self, samples: list[Sample | None], count: SplitCount) -> list[Sample | None]:
        """Return samples whose inputs can be used, None for others, and count the reasons."""
        known = [sample for sample in samples if sample is not None]
        if self._refusal(known) is None:  # at once: one by one takes far longer
            return samples
        found: list[Sample | None] = []
        for sample in samples:
            refusal = None if sample is None else self._refusal([sample])
            if sample is not None and refusal is not None:
                count.unreadable.add(Example(file=sample.key, message=refusal))
            found.append(None if refusal is not None else sample)
        return found

    def _refusal(self, samples: Sequence[Sample]) -> str | None:
        """Return why the inputs of samples can be no batch."""
        try:
            if samples:
                collate(samples, (), self._dataset.collate_inputs)
        except DataError as error:
            return str(error)
        except MemoryError:
            raise
        except Exception as error:
            return f"{samples[0].key}: collate_inputs ended in an error: {describe(error)}"
        return None


def _size(sample: Sample) -> int:
    """Return the bytes of a sample; 0 where its inputs are none, which is told later."""
    try:
        tensors = [*input_tensors(sample.inputs), *sample.targets.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    except (TypeError, AttributeError):
        return 0


def _digest(*parts: bytes | memoryview) -> np.uint64:
    made = hashlib.blake2b(digest_size=8)
    for part in parts:
        made.update(part)
    # 0 stands for what was not read.
    return np.uint64(int.from_bytes(made.digest(), "little") or 1)


def _content(sample: Sample) -> np.uint64:
    parts: list[bytes | memoryview] = []
    for tensor in input_tensors(sample.inputs):
        values = tensor.detach().contiguous()
        parts += [str((values.dtype, tuple(values.shape))).encode(), _bytes(values)]
    return _digest(*parts)


def _bytes(values: Tensor) -> bytes:
    return values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""


def _count_inputs(count: InputCount, samples: Sequence[Sample]) -> None:
    vectors = []
    for sample in samples:
        inputs = sample.inputs
        is_image = isinstance(inputs, Tensor) and inputs.dim() == 3
        count.add_shape(
            "x".join(map(str, inputs.shape[-2:])) if is_image else describe_inputs(inputs)
        )
        for image in (t for t in input_tensors(inputs) if t.dim() == 3 and t.is_floating_point()):
            _count_image(count, sample, image)
        if isinstance(inputs, Tensor) and inputs.dim() == 1:
            if inputs.is_floating_point():
                vectors.append(inputs.numpy())
            else:
                count.lengths.add(np.array([len(inputs)]))
    if vectors and len({len(vector) for vector in vectors}) == 1:
        stacked = np.stack(vectors).astype(np.float64)
        count.add_extent(stacked.min(0), stacked.max(0))


def _count_image(count: InputCount, sample: Sample, image: Tensor) -> None:
    if len(count.channels) < len(image):
        count.channels += [Values() for _ in range(len(image) - len(count.channels))]
    for values, plane in zip(count.channels, image.numpy(), strict=False):
        values.add(plane)
    flat = image.flatten(1)
    if image.numel() and bool((flat == flat[:, :1]).all()):
        count.blank.add(Example(file=sample.key))


def _label(count: TaskCount, sample: Sample) -> tuple[Tensor, Tensor] | None:
    """Return the label of a sample with those values alone that can be counted.

    What is wrong with it is counted; None where there is nothing of it.
    """
    task = count.task
    if task.name not in sample.targets:
        return None
    size = image_size(sample.inputs, samples=False)
    try:
        whole = complete(sample, (task,))
        return whole.targets[task.name], whole.valid[task.name]
    except DataError as error:
        usable = _usable(task, sample, size)
        outside = outside_kind(task, *usable) if usable else None
        where = sample.sources.get(task.name, sample.key)
        if usable is None or outside is None or not len(outside):
            count.wrong.add(Example(file=where, message=str(error)))
            return None
        message = f"{error}{_listed(outside)}"
        count.outside.add(Example(file=where, message=message, count=len(outside)))
        return _inside(task, *usable)


def _usable(task: Task, sample: Sample, size: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """Return a label and its mask as they come, None where they are no such tensors."""
    target, valid = sample.targets[task.name], sample.valid.get(task.name)
    if not isinstance(target, Tensor) or not isinstance(valid, Tensor):
        return None
    fits = target.shape == safe_target(task, size).shape and valid.shape == task.valid_shape(size)
    real = not target.is_complex() and valid.dtype == torch.bool
    return (target, valid) if fits and real else None


def _inside(task: Task, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return a label of which only those values are valid that can be counted."""
    exact = target.double()
    known = exact.isfinite()
    if task.dtype == "int64":
        known &= (exact == exact.round()) & (exact >= 0) & (exact < task.channels)
    if known.shape != valid.shape:
        known = known.all(0)
    valid = valid & known
    mask = valid if valid.shape == target.shape else valid.unsqueeze(0)
    return torch.where(mask, target, 0).to(getattr(torch, task.dtype)), valid


def _listed(values: Tensor) -> str:
    """Return the different values outside a kind's range, the most frequent first."""
    different, counts = np.unique(values.double().numpy(), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = [f"{different[k]:g} ({counts[k]} times)" for k in order[:_SHOWN]]
    more = f", and {len(different) - _SHOWN} others" if len(different) > _SHOWN else ""
    return f" [values: {', '.join(shown)}{more}]"


def _count_map(count: TaskCount, sample: Sample) -> None:
    size = image_size(sample.inputs, samples=False)
    count.elements += math.prod(count.task.valid_shape(size))
    label = _label(count, sample)
    if label is None or not bool(label[1].any()):
        return
    target, valid = label
    where = sample.sources.get(count.task.name, sample.key)
    number = int(valid.sum())
    count.labelled += 1
    count.valid += number
    if count.classes is not None:
        _count_classes(count, target[valid], where)
        return
    known = target[:, valid].numpy()
    for values, channel in zip(count.channels, known, strict=True):
        values.add(channel)
    if number > 1 and bool((known == known[:, :1]).all()):
        message = ", ".join(f"{value:g}" for value in known[:, 0])
        count.constant.add(Example(file=where, message=f"{where}: {message}"))


def _count_classes(count: TaskCount, classes: Tensor, where: str) -> None:
    assert count.classes is not None
    numbers = np.bincount(classes.numpy(), minlength=count.task.channels)
    count.classes += numbers
    count.samples_of += numbers > 0
    lone = np.flatnonzero(numbers == 1).tolist()
    if lone:
        message = ", ".join(class_name(count.task, number) for number in lone[:_SHOWN])
        count.single.add(Example(file=where, message=f"{where}: {message}", count=len(lone)))


def _count_rows(count: TaskCount, samples: Sequence[Sample]) -> None:
    """Count labels that are no maps."""
    task = count.task
    count.elements += len(samples) * math.prod(task.valid_shape(()))
    labels = [label for sample in samples if (label := _label(count, sample)) is not None]
    if not labels:
        return
    targets, valid = (torch.stack(part).numpy() for part in zip(*labels, strict=True))
    count.labelled += int(valid.any(1).sum() if valid.ndim > 1 else valid.sum())
    count.valid += int(valid.sum())
    if count.classes is not None:
        numbers = np.bincount(targets[valid].ravel(), minlength=task.channels)
        count.classes += numbers
        count.samples_of += numbers
        return
    for place, values in enumerate(count.channels):
        values.add(targets[:, place][valid[:, place]])


def class_name(task: Task, number: int) -> str:
    """Return how a class is told to people."""
    return f"{number} ({task.class_names[number]})" if task.class_names else str(number)
