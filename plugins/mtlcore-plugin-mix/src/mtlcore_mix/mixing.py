"""ClassMix and DepthMix: a part of another image, chosen by its labels, pasted with all of them."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import final

import attrs
import torch
from torch import Tensor

from mtlcore.data import Sample
from mtlcore.errors import UsageError, did_you_mean
from mtlcore.loading import BatchAugmentation, image_of
from mtlcore.ranges import Fraction, NonNegative
from mtlcore.tasks import Task


class MaskMix(BatchAugmentation, abc.ABC):
    """Pastes into each image those pixels of another one of the batch that a label chooses.

    Every map of the sample, whatever its kind, and its mask follow the pixels. A label of a whole
    image is that of the pasted one with a probability of the pasted share, else its own. A missing
    label stays missing. Where nothing can be chosen, as the label is missing, a sample stays as it
    is.

    `meta[NAME]` of a sample that was mixed holds `share` of its pixels and `key` of the other one.

    Args:
        name: of the augmentation.
        tasks: the run's tasks.
        kinds: of the task whose labels choose.
        chosen_by: its name; None: the first task of these kinds.
        probability: of mixing, for each image.

    Raises:
        UsageError: there is no such task.
    """

    def __init__(
        self,
        name: str,
        tasks: Sequence[Task],
        kinds: tuple[str, ...],
        chosen_by: str | None,
        probability: float,
    ) -> None:
        self._name, self._tasks, self._probability = name, tuple(tasks), probability
        able = {task.name: task for task in tasks if task.kind in kinds}
        if not able:
            raise UsageError(
                f"data.augmentations: {name} mixes images by a task of the kind "
                f"{' or '.join(kinds)}, and the run has none"
            )
        if chosen_by is not None and chosen_by not in able:
            raise UsageError(
                f"data.augmentations: {name} cannot mix by {chosen_by!r}; it can by "
                f"{', '.join(able)}" + did_you_mean(chosen_by, able)
            )
        self._by = able[chosen_by or next(iter(able))]

    @abc.abstractmethod
    def chosen(self, sample: Sample, other: Sample, generator: torch.Generator) -> Tensor:
        """Return which pixels (H, W) of the other image are pasted.

        Args:
            sample: into which; it has a label of the task, or one that is nowhere valid.
            other: from which.
            generator: the only source of randomness.
        """

    def __call__(self, samples: Sequence[Sample], generator: torch.Generator) -> list[Sample]:
        """Mix images (C, H, W) with one another."""
        others = torch.randperm(len(samples), generator=generator).tolist()
        draws = torch.rand(len(samples), 2, generator=generator).tolist()
        seeds = torch.randint(2**62, (len(samples),), generator=generator).tolist()
        mixed = []
        for sample, other, (mix, whole), seed in zip(samples, others, draws, seeds, strict=True):
            image_of(sample, self._name)
            if mix < self._probability and samples[other] is not sample:
                # A stream of its own: what is drawn for one sample moves no other.
                stream = torch.Generator().manual_seed(seed)
                sample = self._mixed(sample, samples[other], whole, stream)
            mixed.append(sample)
        return mixed

    def _mixed(
        self, sample: Sample, other: Sample, whole: float, generator: torch.Generator
    ) -> Sample:
        pasted = self.chosen(sample, other, generator)
        share = float(pasted.float().mean())
        if share == 0:
            return sample
        targets, valid = dict(sample.targets), dict(sample.valid)
        for task in self._tasks:
            for mine, theirs in ((targets, other.targets), (valid, other.valid)):
                if task.layout == "map":
                    mine[task.name] = torch.where(pasted, theirs[task.name], mine[task.name])
                elif whole < share:
                    mine[task.name] = theirs[task.name]
        image = image_of(sample, self._name)
        return attrs.evolve(
            sample,
            inputs=torch.where(pasted, image_of(other, self._name), image),
            targets=targets,
            valid=valid,
            meta={**sample.meta, self._name: {"share": share, "key": other.key}},
        )


@final
class ClassMix(MaskMix):
    """Pastes half of the classes of another image (Olsson et al., WACV 2021).

    Of the n classes that the other image's valid labels have, n / 2 are drawn, rounded down; their
    pixels are pasted. So an image of one class is not pasted.

    Args:
        tasks: the run's tasks.
        chosen_by: the segmentation task; unset: the first one.
        probability: of mixing, for each image.

    Raises:
        UsageError: there is no such task.
    """

    def __init__(
        self, tasks: Sequence[Task], *, chosen_by: str | None = None, probability: Fraction = 1.0
    ) -> None:
        super().__init__("classmix", tasks, ("segmentation",), chosen_by, probability)

    def chosen(self, sample: Sample, other: Sample, generator: torch.Generator) -> Tensor:
        labels, valid = other.targets[self._by.name], other.valid[self._by.name]
        classes = torch.tensor(sorted({*labels[valid].tolist()}), dtype=labels.dtype)
        drawn = torch.randperm(len(classes), generator=generator)[: len(classes) // 2]
        return torch.isin(labels, classes[drawn]) & valid


@final
class DepthMix(MaskMix):
    """Pastes what is nearer in another image (Hoyer et al., CVPR 2021).

    A pixel of the other image is pasted where both depths are known and its own is less than the
    image's plus `margin`, so that pasted things hide what is behind them, and are hidden by what is
    before them. Of inverse depth, larger is nearer, and the margin is taken off.

    Args:
        tasks: the run's tasks.
        chosen_by: the task of depth or inverse depth; unset: the first one.
        margin: in the unit of the labels; above 0, of surfaces at one distance the pasted one is
            seen.
        probability: of mixing, for each image.

    Raises:
        UsageError: there is no such task.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        chosen_by: str | None = None,
        margin: NonNegative = 0.0,
        probability: Fraction = 1.0,
    ) -> None:
        kinds = ("depth", "inverse-depth")
        super().__init__("depthmix", tasks, kinds, chosen_by, probability)
        self._margin = margin

    def chosen(self, sample: Sample, other: Sample, generator: torch.Generator) -> Tensor:
        name = self._by.name
        mine, theirs = sample.targets[name][0], other.targets[name][0]
        if self._by.kind == "depth":
            nearer = theirs < mine + self._margin
        else:
            nearer = theirs > mine - self._margin
        return nearer & sample.valid[name] & other.valid[name]
