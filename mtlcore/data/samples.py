"""Samples and batches, with a mask that says which labels are there.

A label that was never made, an ignore value, a hole of the sensor and a padded pixel are all the
same: `valid` is False there, and `collate` writes the task's safe value, so that no loss computes
NaN from a placeholder.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import attrs
import numpy as np
import torch
from torch import Tensor

from mtlcore.data.targets import values_of_kind
from mtlcore.errors import MtlError
from mtlcore.inputs import (
    Inputs,
    describe_inputs,
    image_size,
    input_form,
    input_tensors,
    map_inputs,
    sequence_length,
    stack_inputs,
)
from mtlcore.tasks import Task

__all__ = [
    "Batch",
    "DataError",
    "Dataset",
    "Predictor",
    "Sample",
    "collate",
    "complete",
    "empty_batch",
    "place_size",
    "safe_target",
]


class DataError(MtlError):
    """Raised where a sample cannot be read or does not fit its task; names the file first."""


@attrs.frozen(kw_only=True)
class Sample:
    """One example.

    Args:
        inputs: a tensor, or a tree of tensors in dictionaries, lists and tuples. An image is
            float32 (3, H, W) in [0, 1].
        targets: task name -> label of shape `task.target_shape(size)`, where `size` is that of
            `place_size`: (H, W) for a map, (L,) for a sequence. A task without a label has no
            entry.
        valid: task name -> boolean mask of shape `task.valid_shape(size)`, for each of `targets`.
        key: where it comes from (a path, or "rooms/train/17"), for messages and pictures.
        sources: task name -> path of its label, where that is a file of its own; for messages.
        view: number of this view of the example; supervised losses use view 0 only.
        as_is: whether no augmentation may change it, because its labels belong to the picture as it
            is: that of "turned by 90 degrees" is wrong once it is flipped.
        meta: further facts, such as the crop by which `Augmentation` made this view.
    """

    inputs: Inputs
    targets: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    key: str
    sources: Mapping[str, str] = attrs.field(factory=dict)
    view: int = 0
    as_is: bool = False
    meta: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Batch:
    """A batch of samples, with an entry for every task.

    Where samples have several views, view 0 of all samples comes first, then view 1 of all samples
    in the same order, and so on.

    Args:
        inputs: a tensor, or a tree of tensors, each with the samples along its first dimension.
        targets: task name -> `(B, *target_shape)`; the task's safe value where it is not valid.
        valid: task name -> `(B, *valid_shape)` boolean.
        count: task name -> number of valid elements in view 0. A Python int, so that reading it
            never waits for a device.
        labelled: task name -> for each sample (of every view) whether it has a valid element.
        view: for each sample the number of its view.
        keys: the samples' keys.
        meta: the samples' meta.
    """

    inputs: Inputs
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
        """Return the batch on another device, or itself if it is there already."""
        if all(tensor.device == device for tensor in input_tensors(self.inputs)):
            return self
        return attrs.evolve(
            self,
            inputs=map_inputs(lambda tensor: tensor.to(device, non_blocking=True), self.inputs),
            targets={name: t.to(device, non_blocking=True) for name, t in self.targets.items()},
            valid={name: v.to(device, non_blocking=True) for name, v in self.valid.items()},
        )

    def tensors(self) -> Iterator[Tensor]:
        """Yield its inputs, targets and masks."""
        yield from input_tensors(self.inputs)
        yield from self.targets.values()
        yield from self.valid.values()

    def pin_memory(self) -> Batch:
        """Return a copy in memory from which a GPU can copy while it computes."""
        return attrs.evolve(
            self,
            inputs=map_inputs(lambda tensor: tensor.pin_memory(), self.inputs),
            targets={name: target.pin_memory() for name, target in self.targets.items()},
            valid={name: valid.pin_memory() for name, valid in self.valid.items()},
        )

    def first_views(self) -> Batch:
        """Return the samples of view 0, which supervised losses see."""
        rows = [i for i, view in enumerate(self.view) if view == 0]
        if len(rows) == len(self):
            return self
        return attrs.evolve(
            self,
            inputs=map_inputs(lambda tensor: tensor[rows], self.inputs),
            targets={name: target[rows] for name, target in self.targets.items()},
            valid={name: valid[rows] for name, valid in self.valid.items()},
            labelled={name: tuple(known[i] for i in rows) for name, known in self.labelled.items()},
            view=(0,) * len(rows),
            keys=tuple(self.keys[i] for i in rows),
            meta=tuple(self.meta[i] for i in rows),
        )

    def present(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Return those of `tasks` that have at least one valid label in view 0."""
        # A list first: a generator takes longer than the whole answer, in every step.
        return tuple([name for name in tasks if self.count[name] > 0])


class Predictor(Protocol):
    """What a dataset sees of a `mtlcore.teachers.Teacher`."""

    tasks: Mapping[str, Task]

    def predict(self, inputs: Inputs, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the predictions of the named tasks for a batch of inputs."""


class Dataset(abc.ABC):
    """A dataset, made as `Dataset(root, split, **settings)`; the constructor reads no sample.

    `root` is a local path or an fsspec URL, or None for data that needs no files. Unlike a
    `torch.utils.data.Dataset` it declares its tasks and says which labels are valid.

    Attributes:
        splits: names of its splits.
        renders_size: whether it takes a setting `size` (height, width) and returns samples of
            that size, so that they are not resized.
        unlimited: whether it takes a setting `samples`, the number of samples per split, because
            it generates as many as are asked for.
        input_kind: what its inputs are: "image", "vector", "tokens" or any other word that
            backbones read by. Only images are resized and augmented.
        needs_teachers: Names of the teachers of the table `[teachers]` that it asks for. The
            constructor may set it, for one split alone too.
        teachers: Name -> teacher that it has asked for; set before the first sample is read. They
            work on the CPU, as samples may be read in other processes.
        self_labelled: Names of the tasks whose labels it makes of the inputs, such as pretext
            tasks. Nobody has to make them, so `data.labels` shares out those of the other tasks
            alone, and hides none of these.
        repeats: How many times its examples come again, changed, with labels of `self_labelled`
            alone. Of its n * (1 + repeats) samples the first n are the examples, and sample
            r * n + i is made of example i. Limits such as `data.train` and `data.labels` count
            examples.
    """

    splits: tuple[str, ...] = ("train", "val")
    renders_size: bool = False
    unlimited: bool = False
    input_kind: str = "image"
    needs_teachers: tuple[str, ...] = ()
    teachers: Mapping[str, Predictor] = MappingProxyType({})
    self_labelled: tuple[str, ...] = ()
    repeats: int = 0

    @classmethod
    @abc.abstractmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return the tasks that it has labels for, without reading a sample.

        Args:
            root: as in the constructor.
            settings: as in the constructor; those that do not matter here may be missing.
        """

    @classmethod
    def default_size(cls, root: str | None, **settings: Any) -> tuple[int, int] | None:
        """Return the height and width used if `data.size` is not set; None: the images' own."""
        return None

    @classmethod
    def kind_of_inputs(cls, root: str | None, **settings: Any) -> str:
        """Return `input_kind` under these settings, for a dataset whose inputs depend on them."""
        return cls.input_kind

    def collate_inputs(self, inputs: Sequence[Inputs]) -> Inputs:
        """Make the inputs of a batch from those of its samples; override it to pad them.

        Args:
            inputs: of each sample, in order.

        Returns:
            A tensor, or a tree of tensors, each with the samples along its first dimension.
        """
        return stack_inputs(inputs)

    def name_of(self, index: int) -> str | None:
        """Return by what name a list of labels means a sample, without reading it.

        It is the stem of its key, which is the name of a file without folder and ending. None: only
        the sample itself knows, so that a run cannot tell beforehand which names it does not have.

        Args:
            index: of the sample, from 0.
        """
        return None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of samples in the split."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return one sample at its own size.

        Raises:
            DataError: it cannot be read; the message names the file and the reason.
        """


def collate(
    samples: Sequence[Sample],
    tasks: Sequence[Task],
    collate_inputs: Callable[[Sequence[Inputs]], Inputs] | None = None,
) -> Batch:
    """Make a batch of samples and fill in missing labels; those of ignored classes are missing.

    Args:
        samples: at least one.
        tasks: labels of other tasks are dropped.
        collate_inputs: as `Dataset.collate_inputs`; None: they are stacked.

    Raises:
        DataError: inputs are no tensors, not finite, differ in shape where they are stacked, or
            have not the samples along their first dimension afterwards; or a label does not fit its
            task: its shape, or a valid value that its kind does not have (`values_of_kind`).
    """
    for sample in samples:
        _check_form(sample)
    inputs = _collated(samples, collate_inputs)
    _check_finite(samples, inputs)
    view = tuple(sample.view for sample in samples)
    supervised = [i for i, number in enumerate(view) if number == 0]
    targets, valid, count, labelled = {}, {}, {}, {}
    for task in tasks:
        sizes = [place_size(task, sample.inputs, samples=False) for sample in samples]
        if task.layout == "map" and (other := [size for size in sizes if size != sizes[0]]):
            raise DataError(
                f"{samples[0].key}: {task.name} has maps of {list(sizes[0])} and {list(other[0])} "
                "in one batch; set data.size"
            )
        targets[task.name], mask = _labels(samples, task, sizes, inputs)
        valid[task.name] = mask
        found = _counts(task, mask)
        count[task.name] = sum(found[i] for i in supervised)
        labelled[task.name] = tuple(number > 0 for number in found)
    return Batch(
        inputs=inputs,
        targets=targets,
        valid=valid,
        count=count,
        labelled=labelled,
        view=view,
        keys=tuple(sample.key for sample in samples),
        meta=tuple(sample.meta for sample in samples),
    )


def _counts(task: Task, mask: Tensor) -> list[int]:
    """Return how many places of each sample have a label."""
    if task.layout in ("label", "vector"):
        counts: list[int] = mask.reshape(len(mask), -1).sum(1).tolist()
        return counts
    # numpy counts the booleans of a map in a tenth of torch's time.
    return [int(np.count_nonzero(known)) for known in mask.numpy()]


def complete(sample: Sample, tasks: Sequence[Task]) -> Sample:
    """Return a sample with a label and a mask for every task, as `collate` has them, to be edited.

    Args:
        sample: its labels may be missing, in part or altogether.
        tasks: labels of other tasks are dropped.

    Raises:
        DataError: a label does not fit its task.
    """
    labels = {
        task.name: _checked(sample, task, place_size(task, sample.inputs, samples=False))
        for task in tasks
    }
    return attrs.evolve(
        sample,
        targets={name: target.clone() for name, (target, _) in labels.items()},
        valid={name: valid.clone() for name, (_, valid) in labels.items()},
    )


def place_size(task: Task, inputs: Inputs, *, samples: bool = True) -> tuple[int, ...]:
    """Return what `Task.target_shape` takes: height and width for a map, (L,) for a sequence.

    () for any other layout, and where the inputs are no images or sequences.

    Args:
        task: whose labels have places.
        inputs: of a batch, or of a single sample.
        samples: whether the first dimension of the inputs counts samples.
    """
    if task.layout == "sequence":
        length = sequence_length(inputs, samples=samples)
        return () if length is None else (length,)
    return image_size(inputs, samples=samples)


def empty_batch(tasks: Sequence[Task]) -> Batch:
    """Return a batch without samples: the share of a process that gets none of a small batch."""
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
    """Return a target in which every value is the task's safe value: views of one, to be read only.

    Args:
        task: whose target it is.
        size: as of `Task.target_shape`.
    """
    shape = task.target_shape(size)
    fill = torch.tensor(task.safe_value, dtype=getattr(torch, task.dtype))
    if len(task.safe_value) == 1:
        return fill.expand(shape) if shape else fill[0]
    return fill.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def _padded(
    pairs: Sequence[tuple[Tensor, Tensor]],
    task: Task,
    sizes: Sequence[tuple[int, ...]],
    inputs: Inputs,
    key: str,
) -> list[tuple[Tensor, Tensor]]:
    """Return labels of sequences, padded to the length of the batch's inputs; not valid there.

    Raises:
        DataError: the samples or the batch are no sequences, or the batch is shorter than a sample.
    """
    longest = max((length for size in sizes for length in size), default=0)
    together = place_size(task, inputs)
    if not all(sizes) or not together or together[0] < longest:
        raise DataError(
            f"{key}: {task.name} has a label per place of a sequence, and the inputs are "
            f"{describe_inputs(inputs)} in a batch: a sample's tensors must have one length, and "
            "those of the batch that of its longest sample"
        )
    safe = safe_target(task, together)
    found = []
    for target, valid in pairs:
        whole, known = safe.clone(), torch.zeros(together, dtype=torch.bool)
        whole[..., : valid.shape[0]], known[: valid.shape[0]] = target, valid
        found.append((whole, known))
    return found


def _check_form(sample: Sample) -> None:
    try:
        tensors = input_tensors(sample.inputs)
    except TypeError as error:
        raise DataError(f"{sample.key}: the input cannot be used: {error}") from error
    if not tensors:
        raise DataError(f"{sample.key}: the input holds no tensor")


def _check_finite(samples: Sequence[Sample], inputs: Inputs) -> None:
    """Look at the batch; only where it holds NaN, at each sample."""
    if _is_finite(inputs):
        return
    wrong = [sample.key for sample in samples if not _is_finite(sample.inputs)]
    if not wrong:
        raise DataError(f"{samples[0].key}: collate_inputs returns NaN or infinite values")
    raise DataError(f"{wrong[0]}: the input holds NaN or infinite values")


def _is_finite(inputs: Inputs) -> bool:
    tensors = [x for x in input_tensors(inputs) if x.is_floating_point()]
    # A sum is finite only where all values are, and takes a twentieth of the time to look at each.
    return all(bool(x.sum().isfinite()) or bool(x.isfinite().all()) for x in tensors)


def _collated(
    samples: Sequence[Sample], collate_inputs: Callable[[Sequence[Inputs]], Inputs] | None
) -> Inputs:
    # A dataset's own collating may pad; without it all shapes must be the first one's.
    inherited = getattr(collate_inputs, "__func__", None) is Dataset.collate_inputs
    if collate_inputs is None or inherited:
        _check_same_form(samples)
        return stack_inputs([sample.inputs for sample in samples])
    try:
        inputs = collate_inputs([sample.inputs for sample in samples])
    except ValueError:
        _check_same_form(samples)
        raise
    try:
        wrong = [t for t in input_tensors(inputs) if not t.dim() or len(t) != len(samples)]
    except TypeError as error:
        raise DataError(f"{samples[0].key}: collate_inputs returns no inputs: {error}") from error
    if wrong:
        raise DataError(
            f"{samples[0].key}: collate_inputs returns a tensor of shape {list(wrong[0].shape)} "
            f"for {len(samples)} samples; these must be its first dimension"
        )
    return inputs


def _check_same_form(samples: Sequence[Sample]) -> None:
    first = input_form(samples[0].inputs)
    for sample in samples:
        if input_form(sample.inputs) == first:
            continue
        advice = (
            "set data.size"
            if isinstance(sample.inputs, Tensor) and sample.inputs.dim() == 3
            else "a dataset overrides collate_inputs to pad them"
        )
        raise DataError(
            f"{sample.key}: input shape {_shape_text(sample.inputs)} differs from "
            f"{_shape_text(samples[0].inputs)} ({samples[0].key}) in one batch; {advice}"
        )


def _shape_text(inputs: Inputs) -> str:
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    return f"({describe_inputs(inputs)})"


def _labels(
    samples: Sequence[Sample], task: Task, sizes: Sequence[tuple[int, ...]], inputs: Inputs
) -> tuple[Tensor, Tensor]:
    """Return the targets of all samples, stacked, and their masks."""
    if task.layout in ("label", "vector"):
        # A row of a table is a few numbers: to check all of them costs what one does.
        safe = safe_target(task, ())
        found = [_found(sample, task, safe, ()) for sample in samples]
        target, valid = (torch.stack(tensors) for tensors in zip(*found, strict=True))
        try:
            return values_of_kind(task, target, valid, safe.expand(target.shape))
        except ValueError:
            pass  # the checks of each sample tell whose label it is
    pairs = [_checked(sample, task, size) for sample, size in zip(samples, sizes, strict=True)]
    if task.layout == "sequence":
        pairs = _padded(pairs, task, sizes, inputs, samples[0].key)
    targets, masks = zip(*pairs, strict=True)
    return torch.stack(targets), torch.stack(masks)


def _checked(sample: Sample, task: Task, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    safe = safe_target(task, size)
    target, valid = _found(sample, task, safe, size)
    try:
        return values_of_kind(task, target, valid, safe)
    except ValueError as error:
        where = sample.sources.get(task.name, sample.key)
        raise DataError(f"{where}: {task.name} label {error}") from error


def _found(
    sample: Sample, task: Task, safe: Tensor, size: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return a label and its mask as the sample has them; a missing one is `safe`."""
    if task.name not in sample.targets:
        return safe, torch.zeros(task.valid_shape(size), dtype=torch.bool)
    target, valid = sample.targets[task.name], sample.valid.get(task.name)
    where = sample.sources.get(task.name, sample.key)
    if not isinstance(target, Tensor) or not isinstance(valid, Tensor) or valid.dtype != torch.bool:
        found = [f"{type(x).__name__} {getattr(x, 'dtype', '')}".strip() for x in (target, valid)]
        raise DataError(
            f"{where}: {task.name} label must be a tensor with a boolean one in `valid`, not "
            f"{found[0]} with {found[1]}"
        )
    if target.shape != safe.shape or valid.shape != task.valid_shape(size):
        raise DataError(
            f"{where}: {task.name} label has shape {tuple(target.shape)} (mask "
            f"{tuple(valid.shape)}) where {tuple(safe.shape)} was expected"
        )
    return target, valid
