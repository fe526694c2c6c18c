"""The best predictions that look at no image: the yardstick beside every model's metrics.

The best constant comes from the labels of the training split alone, once for all pixels
("global") and once for each pixel by itself ("pixel"). A model that does not beat them has learnt
nothing from the images.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from torch import Tensor

from mtlcore.tasks import Task

Extent = Literal["global", "pixel"]

# A rate of 0 or 1 has an infinite logit; cut off here it is about 13.8.
_SMALLEST_RATE = 1e-6


class _Rule(abc.ABC):
    """The best constant for labels of one kind, at every place of `shape` by itself.

    `shape` is (H, W), or () where pixels were made samples. A missing label is -1 (classes) or
    NaN (values), and so is a place that never had one in `best`.
    """

    dtype: str

    @abc.abstractmethod
    def __init__(self, channels: int, shape: tuple[int, ...]) -> None: ...

    @abc.abstractmethod
    def add(self, labels: Tensor) -> None:
        """Classes (N, *shape) int64 or values (N, C, *shape) float32."""

    @abc.abstractmethod
    def best(self) -> Tensor:
        """Return a raw prediction (C, *shape) in float32, NaN where there was no label."""


@final
class _Majority(_Rule):
    """The more frequent a class (of equals, the lower), the larger its logit: the most hits.

    So it is whether the first class counts or the first few.
    """

    dtype = "int64"

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        self._counts = torch.zeros(channels, *shape, dtype=torch.int64)

    def add(self, labels: Tensor) -> None:
        self._counts.scatter_add_(0, labels.clamp_min(0), (labels >= 0).long())

    def best(self) -> Tensor:
        order = self._counts.argsort(dim=0, descending=True, stable=True)
        below = len(self._counts) - 1 - order.argsort(dim=0)  # how many classes are less frequent
        return torch.where(self._counts.sum(0) > 0, below.float(), torch.nan)


@final
class _Median(_Rule):
    """The (lower) median of each channel: the smallest mean absolute error. Keeps all labels."""

    dtype = "float32"

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        self._rows = bool(shape)
        self._labels: list[Tensor] = []

    def add(self, labels: Tensor) -> None:
        self._labels.append(labels)

    def best(self) -> Tensor:
        if not self._rows:
            return torch.cat(self._labels).nanmedian(0).values
        # One row of pixels at a time: all of them at once would double the memory.
        height = self._labels[0].shape[2]
        rows = [torch.cat([labels[:, :, y] for labels in self._labels]) for y in range(height)]
        return torch.stack([row.nanmedian(0).values for row in rows], dim=1)


class _Sums:
    """Sums and counts of values at every place."""

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        self.total = torch.zeros(channels, *shape, dtype=torch.float64)
        self.count = torch.zeros(channels, *shape, dtype=torch.int64)

    def add(self, labels: Tensor) -> None:
        self.total += labels.nansum(0, dtype=torch.float64)
        self.count += labels.isnan().logical_not().sum(0)


@final
class _Direction(_Rule):
    """The sum of the unit vectors at unit length: the largest mean cosine."""

    dtype = "float32"

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        self._sums = _Sums(channels, shape)

    def add(self, labels: Tensor) -> None:
        self._sums.add(labels)

    def best(self) -> Tensor:
        # Labels that cancel out have no mean direction either.
        length = self._sums.total.square().sum(0).sqrt()
        return torch.where(length > 0, self._sums.total / length, torch.nan).float()


@final
class _BaseRate(_Rule):
    """The logit of the mean of each channel: the smallest mean binary cross-entropy."""

    dtype = "float32"

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        self._sums = _Sums(channels, shape)

    def add(self, labels: Tensor) -> None:
        self._sums.add(labels)

    def best(self) -> Tensor:
        rate = self._sums.total / self._sums.count
        return torch.logit(rate, eps=_SMALLEST_RATE).float()


_RULES: dict[str, type[_Rule]] = {
    "segmentation": _Majority,
    "classification": _Majority,
    "tagging": _Majority,
    "depth": _Median,
    "inverse-depth": _Median,
    "regression": _Median,
    "normals": _Direction,
    "edges": _BaseRate,
    "saliency": _BaseRate,
    "multilabel": _BaseRate,
}


@final
class ConstantFit:
    """Finds the best constants from the labels of a training split.

    Classes: the majority; depth and regression: the median; normals: the mean direction; edges
    and multilabel: the base rate. Other kinds have no rule here, and no constant.

    Labels are collected on the CPU. Medians keep them all: 4 n C H W bytes for n labelled maps,
    and three times that on top while the global one is computed; bound n accordingly. The others
    keep a few sums per pixel and class.

    Args:
        tasks: what to find constants for; those without a rule are passed over.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._fits = {task.name: _TaskFit(task) for task in tasks if self.supports(task)}

    @staticmethod
    def supports(task: Task) -> bool:
        """Whether there is a rule for the task's kind and type of label."""
        rule = _RULES.get(task.kind)
        return rule is not None and rule.dtype == task.dtype

    def update(self, targets: Mapping[str, Tensor], valid: Mapping[str, Tensor]) -> None:
        """Take in a batch's labels: `targets` and `valid` of a `Batch`, of view 0 only."""
        for name, fit in self._fits.items():
            fit.add(targets[name].cpu(), valid[name].cpu())

    def predict(
        self, kind_of: Extent, task: Task, size: tuple[int, ...] | None = None
    ) -> Tensor | None:
        """Return the constant as a raw prediction for one sample, in float32.

        Args:
            kind_of: "global", one constant for all pixels, or "pixel", one for each; pixels that
                never had a label take the global one.
            task: one of those given at the start.
            size: (H, W) of the sample, or (L,) of a sequence; by default that of the training maps.

        Returns:
            (C, H, W) for maps, (C, L) for sequences, else (C,). None where there is no such
            constant: no rule for the kind, no label at all, or "pixel" for what is no map, for
            training labels of differing sizes, or at a size that is not theirs. A channel of a
            vector that never had a label is NaN.

        Raises:
            ValueError: the training labels differ in size and `size` is not given.
        """
        fit = self._fits.get(task.name)
        if fit is None:
            return None
        return fit.everywhere(size) if kind_of == "global" else fit.per_pixel(size)


@final
class _TaskFit:
    """One task's rule, over all pixels together and, while maps have one size, over each."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._rule = _RULES[task.kind]
        self._all: _Rule | None = None
        self._each: _Rule | None = None
        self._sizes: set[tuple[int, ...]] = set()

    def add(self, target: Tensor, valid: Tensor) -> None:
        labelled = valid.reshape(len(valid), -1).any(1)
        if not bool(labelled.any()):
            return
        if self._all is None:
            self._all = self._rule(self._task.channels, ())
        labels = self._marked(target[labelled], valid[labelled])
        if self._task.layout == "map":
            self._add_to_each(labels)
        if self._task.is_dense:
            # For one channel this is a view, so that a median's labels are kept only once.
            of_classes = self._task.dtype == "int64"
            labels = labels.flatten() if of_classes else labels.movedim(1, -1).flatten(0, -2)
        self._all.add(labels)

    def _marked(self, target: Tensor, valid: Tensor) -> Tensor:
        if self._task.dtype == "int64":
            return torch.where(valid, target, -1)
        mask = valid if valid.dim() == target.dim() else valid.unsqueeze(1)
        return torch.where(mask, target.float(), torch.nan)

    def _add_to_each(self, labels: Tensor) -> None:
        size = tuple(labels.shape[-2:])
        if not self._sizes:
            self._each = self._rule(self._task.channels, size)
        self._sizes.add(size)
        if len(self._sizes) > 1:
            self._each = None
        if self._each is not None:
            self._each.add(labels)

    def everywhere(self, size: tuple[int, ...] | None) -> Tensor | None:
        if self._all is None:
            return None
        best = self._all.best()
        if bool(best.isnan().all()):
            return None
        if not self._task.is_dense:
            return best
        if size is None:
            if len(self._sizes) > 1:
                raise ValueError(f"labels of task {self._task.name!r} differ in size: give one")
            (size,) = self._sizes
        return best.view(-1, *[1] * len(size)).expand(-1, *size).clone()

    def per_pixel(self, size: tuple[int, ...] | None) -> Tensor | None:
        if self._each is None or (size is not None and tuple(size) not in self._sizes):
            return None
        overall = self.everywhere(None)
        best = self._each.best()
        return best if overall is None else torch.where(best.isnan(), overall, best)
