"""Resizing, cropping, flipping and turning of a sample: its image, labels and masks together.

Labels and masks are resampled by nearest pixels, never by averaging: the mean of two classes is no
class, and a mean with a hole in it is no depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlcore.data import DataError, Sample
from mtlcore.inputs import describe_inputs
from mtlcore.tasks import Task

__all__ = [
    "Augmentation",
    "Box",
    "Size",
    "as_seen_in",
    "flip",
    "resize",
    "resize_label",
    "turn",
    "zoom",
]

Size = tuple[int, int]
Box = tuple[int, int, int, int]  # top, left, height, width


def _unchanged(values: Tensor) -> Tensor:
    return values


def _same_at_scale(values: Tensor, _scale: float) -> Tensor:
    return values


def _nearer(depth: Tensor, scale: float) -> Tensor:
    return depth / scale


def _nearer_inverse(inverse_depth: Tensor, scale: float) -> Tensor:
    return inverse_depth * scale


def _same_when_turned(values: Tensor, _cosine: float, _sine: float) -> Tensor:
    return values


def _turned_normals(normals: Tensor, cosine: float, sine: float) -> Tensor:
    x, y, z = normals
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y, z])


def _mirrored_normals(normals: Tensor) -> Tensor:
    return normals * normals.new_tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)


@attrs.frozen(kw_only=True)
class _Rule:
    """What a kind's values do as the picture is flipped, enlarged, turned; how its maps shrink."""

    flip: Callable[[Tensor], Tensor] = _unchanged
    zoom: Callable[[Tensor, float], Tensor] = _same_at_scale
    turn: Callable[[Tensor, float, float], Tensor] = _same_when_turned
    keeps_thin_lines: bool = False


_RULES = {
    "depth": _Rule(zoom=_nearer),
    "inverse-depth": _Rule(zoom=_nearer_inverse),
    "normals": _Rule(flip=_mirrored_normals, turn=_turned_normals),
    "edges": _Rule(keeps_thin_lines=True),
}
_PLAIN = _Rule()  # classes, and maps of a kind that is not listed


def resize(sample: Sample, tasks: Sequence[Task], size: Size) -> Sample:
    """Resize a sample; the values of labels stay the same, even if the aspect ratio changes.

    The image is resampled bilinearly with antialiasing, labels and masks by nearest pixels. Edges
    are max-pooled when they shrink, as they are one pixel wide and whole lines would be lost: a new
    pixel is an edge if any old pixel that it covers is one. It is valid then, or if all old pixels
    that it covers are valid.

    Args:
        sample: its inputs are (C, H, W).
        tasks: labels of other tasks are dropped; labels that are no maps stay as they are.
        size: the new height and width.
    """
    height, width = _image_size(sample, "data.size")
    if (height, width) == tuple(size):
        return sample

    def change(task: Task, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        return resize_label(task, target, valid, size)

    return _apply(sample, tasks, _bilinear(sample.inputs, size), change)


def resize_label(task: Task, target: Tensor, valid: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Resize a map and its mask as `resize` does.

    Args:
        task: whose label it is.
        target: (..., H, W).
        valid: (H, W).
        size: the new height and width.
    """
    height, width = valid.shape
    if size[0] <= height and size[1] <= width and _rule(task).keeps_thin_lines:
        return _pool(target, valid, size)
    box = (0, 0, height, width)
    return _nearest(target, box, size), _nearest(valid, box, size)


def flip(sample: Sample, tasks: Sequence[Task]) -> Sample:
    """Flip a sample horizontally; the x component of normals changes its sign.

    The result is a possible photograph if the principal point is the centre of the image.
    """

    def change(task: Task, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        return _rule(task).flip(target.flip(-1)), valid.flip(-1)

    _image_size(sample, "data.augment")
    return _apply(sample, tasks, sample.inputs.flip(-1), change)


def zoom(sample: Sample, tasks: Sequence[Task], box: Box, scale: float) -> Sample:
    """Crop a sample and enlarge the crop to the size of the whole.

    As in MTAN's augmentation, depth is divided by the scale, as if the camera had come nearer, and
    inverse depth is multiplied by it. Normals keep their values, although those of a scene with
    compressed depth would differ slightly.

    Args:
        sample: its inputs are (C, H, W).
        tasks: labels of other tasks are dropped; labels that are no maps stay as they are.
        box: top, left, height and width of the crop in pixels.
        scale: factor by which things look larger.
    """
    height, width = _image_size(sample, "data.augment")
    size = (height, width)
    top, left, rows, columns = box
    part = sample.inputs[:, top : top + rows, left : left + columns]

    def change(task: Task, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        return _rule(task).zoom(_nearest(target, box, size), scale), _nearest(valid, box, size)

    return _apply(sample, tasks, _bilinear(part, size), change)


def turn(sample: Sample, tasks: Sequence[Task], degrees: float, scale: float = 1.0) -> Sample:
    """Turn a sample about the middle of its image, clockwise as one sees it, and scale it.

    As if the camera had rolled: the x and y components of normals turn with the picture, and depth
    is divided by the scale, inverse depth multiplied. What comes from outside of the image is black
    there and not valid in any map.

    Args:
        sample: its inputs are (C, H, W).
        tasks: labels of other tasks are dropped; labels that are no maps stay as they are.
        degrees: the angle; a negative one turns counter-clockwise.
        scale: factor by which things look larger, above 0.
    """
    height, width = _image_size(sample, "data.augmentations")
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Where each new pixel lies in the given image, in pixels from its middle.
    x = torch.arange(width).double() + 0.5 - width / 2
    y = (torch.arange(height).double() + 0.5 - height / 2)[:, None]
    across, down = (cosine * x + sine * y) / scale, (cosine * y - sine * x) / scale
    columns, rows = ((p + n / 2).floor().long() for p, n in ((across, width), (down, height)))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    picks = rows.clamp(0, height - 1), columns.clamp(0, width - 1)

    def change(task: Task, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        rule = _rule(task)
        moved = rule.zoom(target[(..., *picks)], scale)
        return rule.turn(moved, cosine, sine), valid[picks] & inside

    grid = torch.stack([across * 2 / width, down * 2 / height], dim=-1).to(sample.inputs.dtype)
    image = F.grid_sample(sample.inputs[None], grid[None], mode="bilinear", align_corners=False)
    return _apply(sample, tasks, image[0], change)


def _at_least_one(_instance: object, _attribute: object, value: tuple[float, ...]) -> None:
    if not value or min(value) < 1.0:
        raise ValueError(f"scales {value}: give one or more, each at least 1")


@final
@attrs.frozen
class Augmentation:
    """Random crops, enlarged, and horizontal flips.

    MTAN's augmentation has the scales (1, 1.2, 1.5) and flips.

    Args:
        scales: one of them is drawn for each sample; 1 is the whole image, 1.5 a crop of two thirds
            of its height and width.
        flip: whether to flip each sample with a probability of one half.
    """

    scales: tuple[float, ...] = attrs.field(default=(1.0,), validator=_at_least_one)
    flip: bool = False

    def __call__(self, sample: Sample, tasks: Sequence[Task], generator: torch.Generator) -> Sample:
        """Augment a sample, unless it is to stay `as_is`.

        Args:
            sample: its inputs are (C, H, W).
            tasks: labels of other tasks are dropped.
            generator: the only source of randomness.

        Returns:
            The augmented sample. Its `meta` holds `crop` (top, left, height and width in pixels of
            the given sample), `scale` and `flip`, which `as_seen_in` reads.
        """
        which, down, right, mirror = torch.rand(4, generator=generator).tolist()
        scale = self.scales[int(which * len(self.scales))]
        height, width = _image_size(sample, "data.augment")
        rows, columns = max(round(height / scale), 1), max(round(width / scale), 1)
        top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
        box = (top, left, rows, columns)
        flipped = self.flip and mirror < 0.5
        if sample.as_is:  # after all draws: those of the next sample stay as they are
            scale, box, flipped = 1.0, (0, 0, height, width), False
        if scale > 1.0:
            sample = zoom(sample, tasks, box, scale)
        if flipped:
            sample = flip(sample, tasks)
        geometry = {"crop": box, "scale": scale, "flip": flipped}
        return attrs.evolve(sample, meta={**sample.meta, **geometry})


def as_seen_in(task: Task, maps: Tensor, meta: Mapping[str, Any]) -> Tensor:
    """Transform a prediction as `Augmentation` has transformed the image that it belongs to.

    Unlike a label it is resampled bilinearly, so that gradients reach every pixel of the crop.

    Args:
        task: whose prediction it is; values change as its labels do.
        maps: (C, H, W), predicted from the image before augmentation.
        meta: of the augmented sample.

    Returns:
        (C, H, W), comparable with the prediction from the augmented image.
    """
    top, left, rows, columns = meta["crop"]
    height, width = maps.shape[1:]
    rule = _rule(task)
    if meta["scale"] > 1.0:
        part = maps[None, :, top : top + rows, left : left + columns]
        enlarged = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
        maps = rule.zoom(enlarged[0], meta["scale"])
    return rule.flip(maps.flip(-1)) if meta["flip"] else maps


def _image_size(sample: Sample, setting: str) -> Size:
    """Return height and width of a sample's image.

    Raises:
        DataError: it is no image; the message names the setting that asks for the change.
    """
    inputs = sample.inputs
    if not isinstance(inputs, Tensor) or inputs.dim() != 3:
        raise DataError(
            f"{sample.key}: {setting} changes images (C, H, W), and the input is "
            f"{describe_inputs(inputs)}; leave {setting} out"
        )
    return inputs.shape[1], inputs.shape[2]


def _rule(task: Task) -> _Rule:
    return _RULES.get(task.kind, _PLAIN)


def _apply(
    sample: Sample,
    tasks: Sequence[Task],
    inputs: Tensor,
    change: Callable[[Task, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Sample:
    targets, valid = {}, {}
    for task in tasks:
        if task.name in sample.targets:
            pair = sample.targets[task.name], sample.valid[task.name]
            targets[task.name], valid[task.name] = (
                change(task, *pair) if task.layout == "map" else pair
            )
    return attrs.evolve(sample, inputs=inputs, targets=targets, valid=valid)


def _bilinear(image: Tensor, size: Size) -> Tensor:
    if image.shape[1:] == size:
        return image
    resized = F.interpolate(image[None], size, mode="bilinear", antialias=True)
    return resized[0]


def _nearest(values: Tensor, box: Box, size: Size) -> Tensor:
    """(..., H, W) of any data type: the part in the box at another size, by its nearest pixels."""
    top, left, rows, columns = box
    for dim, first, count, wanted in ((-2, top, rows, size[0]), (-1, left, columns, size[1])):
        # In whole numbers: the pixel in which the middle of the new one lies.
        picks = first + (2 * torch.arange(wanted) + 1) * count // (2 * wanted)
        values = values.index_select(dim, picks)
    return values


def _pool(target: Tensor, valid: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    strength = F.adaptive_max_pool2d((target * valid)[None], size)[0]
    unknown = F.adaptive_max_pool2d((~valid)[None].float(), size)[0]
    return strength, (strength[0] > 0) | (unknown == 0)
