"""Augmentations: colours of one image, turning it, and boxes pasted between those of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, final

import attrs
import torch
from torch import Tensor

from mtlcore.data import Sample
from mtlcore.loading import BatchAugmentation, SampleAugmentation, image_of, turn
from mtlcore.ranges import Fraction, Positive, Range
from mtlcore.tasks import Task

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


@final
class Photometric(SampleAugmentation):
    """Changes brightness, contrast and saturation, each with a probability of one half.

    Brightness `x + b`, contrast `m + c (x - m)` around the image's mean luma m, saturation
    `g + s (x - g)` around each pixel's luma g; the result is clipped to [0, 1]. b, c and s are
    drawn uniformly. The paper scales contrast around zero and saturation in HSV, and changes hue
    too.

    Args:
        tasks: the run's tasks; their labels stay as they are.
        brightness: b lies in [-brightness, brightness].
        contrast: c lies in [1 - contrast, 1 + contrast].
        saturation: s lies in [1 - saturation, 1 + saturation].

    Raises:
        ValueError: a setting is not in [0, 1].
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        brightness: Fraction = 0.125,
        contrast: Fraction = 0.5,
        saturation: Fraction = 0.5,
    ) -> None:
        ranges = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, value in ranges.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} {value} must lie between 0 and 1")
        self._ranges = torch.tensor([brightness, contrast, saturation])

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Change the colours of an image (3, H, W)."""
        image = image_of(sample, "photometric", channels=3)
        draws = torch.rand(2, 3, generator=generator)
        strengths = (2 * draws[0] - 1) * self._ranges * (draws[1] < 0.5)
        brightness, contrast, saturation = strengths.tolist()
        image = image + brightness
        mean = _luma(image).mean()
        image = mean + (1 + contrast) * (image - mean)
        grey = _luma(image)
        image = grey + (1 + saturation) * (image - grey)
        return attrs.evolve(sample, inputs=image.clamp(0, 1))


@final
class Rotate(SampleAugmentation):
    """Turns each sample about the middle of its image, and scales it: image, labels and masks.

    Angle and scale are drawn uniformly. The image is resampled bilinearly, labels and masks by
    nearest pixels; what comes from outside of the image is black and not valid. The x and y
    components of normals (x to the right, y down, as everywhere in mtlcore) turn with the picture,
    and depth is divided by the scale. PASCAL-Context is augmented with 20 degrees and scales from
    0.75 to 1.25 (Maninis et al. 2019, Vandenhende et al. 2021).

    Args:
        tasks: the run's tasks.
        degrees: the largest angle, to either side.
        scales: smallest and largest factor by which things look larger.

    Raises:
        ValueError: the angle is not from 0 to 180, or the scales are not positive and in order.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        degrees: Annotated[float, Range(ge=0, le=180)] = 20.0,
        scales: tuple[Positive, Positive] = (1.0, 1.0),
    ) -> None:
        if not 0 <= degrees <= 180:
            raise ValueError(f"degrees {degrees} must lie between 0 and 180")
        if len(scales) != 2 or not 0 < scales[0] <= scales[1] < math.inf:
            raise ValueError(
                f"scales {scales} must be two, the smallest and the largest, and positive"
            )
        self._tasks, self._degrees, self._scales = tuple(tasks), degrees, scales

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Turn an image (C, H, W) and its maps."""
        image_of(sample, "rotate")
        angle, size = torch.rand(2, generator=generator).tolist()
        low, high = self._scales
        degrees = (2 * angle - 1) * self._degrees
        return turn(sample, self._tasks, degrees, low + size * (high - low))


@final
class CutMix(BatchAugmentation):
    """Pastes into each image a box of another one of the batch, with the labels inside.

    The box has the image's aspect ratio and a share of its area that is drawn uniformly from [0, 1]
    (the paper's alpha = 1). Maps, with their masks, are those of the pasted image inside of the
    box, whatever their kind. A label of a whole image is that of the pasted image with a
    probability of the box's share, else its own: its expected loss is the paper's, which weighs the
    losses of both labels by their share, and a label keeps its type. A missing label stays missing.

    `meta["cutmix"]` of a sample with a box holds `box` (top, left, height, width) and `key` of the
    pasted one.

    Args:
        tasks: the run's tasks.
        probability: of pasting, for each image.

    Raises:
        ValueError: the probability is not in [0, 1].
    """

    def __init__(self, tasks: Sequence[Task], *, probability: Fraction = 1.0) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability {probability} must lie between 0 and 1")
        self._tasks, self._probability = tuple(tasks), probability

    def __call__(self, samples: Sequence[Sample], generator: torch.Generator) -> list[Sample]:
        """Paste a box into each image (C, H, W)."""
        others = torch.randperm(len(samples), generator=generator).tolist()
        draws = torch.rand(len(samples), 5, generator=generator).tolist()
        return [
            self._pasted(sample, samples[other], *draw)
            for sample, other, draw in zip(samples, others, draws, strict=True)
        ]

    def _pasted(
        self, sample: Sample, other: Sample, paste: float, area: float, *place: float
    ) -> Sample:
        image, pasted = image_of(sample, "cutmix"), image_of(other, "cutmix")
        if paste >= self._probability or other is sample:
            return sample
        height, width = image.shape[1:]
        rows, columns = round(height * area**0.5), round(width * area**0.5)
        down, right, choice = place
        top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
        box = (slice(top, top + rows), slice(left, left + columns))
        whole = choice < rows * columns / (height * width)
        targets, valid = dict(sample.targets), dict(sample.valid)
        for task in self._tasks:
            for mine, theirs in ((targets, other.targets), (valid, other.valid)):
                if task.layout == "map":
                    mine[task.name] = _with_box(mine[task.name], theirs[task.name], box)
                elif whole:
                    mine[task.name] = theirs[task.name]
        told: Mapping[str, Any] = {"box": (top, left, rows, columns), "key": other.key}
        return attrs.evolve(
            sample,
            inputs=_with_box(image, pasted, box),
            targets=targets,
            valid=valid,
            meta={**sample.meta, "cutmix": told},
        )


def _luma(image: Tensor) -> Tensor:
    """Return (1, H, W), how bright each pixel is."""
    return (image * image.new_tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)


def _with_box(values: Tensor, others: Tensor, box: tuple[slice, slice]) -> Tensor:
    """Return (..., H, W) values with those of others in the box."""
    result = values.clone()
    result[(..., *box)] = others[(..., *box)]
    return result
