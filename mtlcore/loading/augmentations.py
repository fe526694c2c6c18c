"""The contracts of augmentations: random changes of training samples, labels included."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore.data import Sample
from mtlcore.errors import UsageError

__all__ = [
    "BatchAugmentation",
    "SampleAugmentation",
    "image_of",
]


class SampleAugmentation(abc.ABC):
    """A random change of one sample, made as `SampleAugmentation(tasks, **settings)`.

    `tasks` are the run's tasks. An object is used for many samples, in several processes: it keeps
    nothing from one call to the next.
    """

    @abc.abstractmethod
    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the changed sample; the given one stays as it is.

        Labels and their masks follow the pixels that they belong to. A value that is not valid may
        be anything, and stays not valid. Key and meta are kept; meta may be added to.

        Args:
            sample: with labels of the run's tasks only; a task without a label has no entry.
            generator: the only source of randomness.

        Raises:
            UsageError: the input is of a kind that cannot be changed in this way.
        """


class BatchAugmentation(abc.ABC):
    """A random change of the samples of a batch, made as `BatchAugmentation(tasks, **settings)`.

    `tasks` are the run's tasks. An object is used for many batches, in several processes: it keeps
    nothing from one call to the next.
    """

    @abc.abstractmethod
    def __call__(self, samples: Sequence[Sample], generator: torch.Generator) -> list[Sample]:
        """Return the changed samples, as many, in order; the given ones stay as they are.

        Labels and their masks follow the pixels that they belong to. Key and meta of each are kept;
        meta may be added to.

        Args:
            samples: images of one shape, or inputs of another kind. Each has a label and a mask for
                every task of the run: where nothing is valid, the label holds the task's safe
                value.
            generator: the only source of randomness.

        Raises:
            UsageError: the inputs are of a kind that cannot be changed in this way.
        """


def image_of(sample: Sample, augmentation: str, channels: int | None = None) -> Tensor:
    """Return a sample's input, which must be an image (C, H, W).

    Args:
        sample: whose input it is.
        augmentation: the name of what changes images, for the message.
        channels: how many the image must have; None: any number.

    Raises:
        UsageError: the input is something else.
    """
    inputs = sample.inputs
    if isinstance(inputs, Tensor) and inputs.dim() == 3 and channels in (None, len(inputs)):
        return inputs
    shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
    raise UsageError(
        f"data.augmentations: {augmentation} changes images ({channels or 'C'}, H, W), and the "
        f"input of {sample.key} is {shape}; leave it out"
    )
