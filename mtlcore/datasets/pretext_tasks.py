"""Pretext tasks: a changed picture, and a label that its change is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import final

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlcore.datasets.random_numbers import Stream
from mtlcore.tasks import Task

ANGLES = ("0", "90", "180", "270")
PLACES = (
    "upper_left",
    "above",
    "upper_right",
    "left",
    "right",
    "lower_left",
    "below",
    "lower_right",
)
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)

# Doersch et al.: patches of 96 pixels, 48 between them, each moved by up to 7.
_PATCH, _GAP, _JITTER = 96, 48, 7
_LEAST_PATCH = 4

# SimMIM: patches of 32 pixels in an image of 192, of which 0.6 are hidden.
_CELLS = 6
_HIDDEN = 0.6
_FILL = 0.5

# From linear red, green and blue of sRGB to X, Y, Z (IEC 61966-2-1), and its white, D65.
_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_WHITE = (0.95047, 1.0, 1.08883)


@final
@attrs.frozen
class Posed:
    """A picture as a pretext task shows it.

    Args:
        image: float32 (3, H, W) in [0, 1], of the size of the given one.
        target: the label, of the task's shape.
        valid: its mask.
    """

    image: Tensor
    target: Tensor
    valid: Tensor


@final
@attrs.frozen
class PretextTask:
    """A task whose labels are made of pictures.

    Args:
        task: as a dataset declares it.
        pose: called with a picture, float32 (3, H, W) in [0, 1], which it leaves as it is, and a
            stream of random numbers. Raises a ValueError that says what is wrong with the picture.
    """

    task: Task
    pose: Callable[[Tensor, Stream], Posed]


def rotation(image: Tensor, random: Stream) -> Posed:
    """Turn a picture by 0, 90, 180 or 270 degrees (Gidaris, Singh & Komodakis, ICLR 2018).

    Where it is no square, its middle square is turned, and what is beside it is black at all four
    angles: the shape of what is seen must not tell the angle.

    Args:
        image: (3, H, W).
        random: draws the angle.

    Returns:
        The label is the number of quarters by which it was turned, counter-clockwise.
    """
    quarters = random.below(len(ANGLES))
    height, width = image.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = (slice(None), slice(top, top + side), slice(left, left + side))
    turned = torch.zeros_like(image)
    turned[square] = torch.rot90(image[square], quarters, (1, 2))
    return Posed(turned, torch.tensor(quarters), torch.tensor(True))


def position(image: Tensor, random: Stream) -> Posed:
    """Show two patches, and ask where the second one was (Doersch, Gupta & Efros, ICCV 2015).

    A grid of 3 x 3 patches is laid somewhere into the picture, as large as it fits. As in the paper
    there is half a patch between neighbours, and the second patch is moved by up to 7/96 of its
    side in each direction, so that lines that go on across the gap do not answer the question.

    Departures: a network reads one picture, so both patches are enlarged and put side by side into
    one, the middle one on the left; the paper's network has two trunks that share their weights.
    Patches are grey, for which the paper drops or projects colours: chromatic aberration tells the
    place in the picture of a lens. Its blurring of some patches is left out.

    Args:
        image: (3, H, W).
        random: draws the place of the grid, the neighbour and how far it is moved.

    Returns:
        The label is a number of `PLACES`.

    Raises:
        ValueError: the picture is too small for a grid.
    """
    height, width = image.shape[1:]
    patch = min(height, width) * _PATCH // (3 * _PATCH + 2 * _GAP + 2 * _JITTER)
    if patch < _LEAST_PATCH or width < 2:
        raise ValueError(f"is {height} x {width} pixels, too small for nine patches")
    step, jitter = patch + patch * _GAP // _PATCH, patch * _JITTER // _PATCH
    place = random.below(len(PLACES))
    row, column = divmod(place if place < 4 else place + 1, 3)  # 4 is the middle itself
    extent = 2 * step + patch + 2 * jitter
    top = jitter + random.below(height - extent + 1)
    left = jitter + random.below(width - extent + 1)
    down, right = (random.below(2 * jitter + 1) - jitter for _ in range(2))
    grey = _grey(image)
    pair = (
        _patch(grey, top + step, left + step, patch),
        _patch(grey, top + row * step + down, left + column * step + right, patch),
    )
    side = min(height, width // 2)
    shown = torch.zeros_like(image)
    above = (height - side) // 2
    for number, part in enumerate(pair):
        before = number * (width // 2) + (width // 2 - side) // 2
        enlarged = F.interpolate(part[None], (side, side), mode="bilinear", antialias=True)[0]
        shown[:, above : above + side, before : before + side] = enlarged
    return Posed(shown, torch.tensor(place), torch.tensor(True))


def colour(image: Tensor, random: Stream) -> Posed:
    """Take the colours away, and ask for them (Zhang, Isola & Efros, ECCV 2016).

    The picture is its lightness L / 100 of CIE Lab, the label a and b of each pixel. This is the
    paper's equation 1, a regression; its classes of colours with weights for rare ones are left
    out.

    Args:
        image: (3, H, W).
        random: not used.

    Returns:
        The label is (2, H, W), valid everywhere.
    """
    lab = lab_of(image)
    shown = (lab[:1] / 100).clamp(0, 1).expand_as(image).contiguous()
    return Posed(shown, lab[1:].contiguous(), torch.ones(image.shape[1:], dtype=torch.bool))


def inpainting(image: Tensor, random: Stream) -> Posed:
    """Hide 0.6 of a picture, and ask for what is hidden (SimMIM: Xie et al., CVPR 2022).

    A grid has cells of a sixth of the shorter side, as SimMIM's have 32 of 192 pixels; 0.6 of them,
    rounded up, are hidden. Departure: SimMIM hides patches by an embedding that is learnt; here
    they are grey, because a dataset does not know the network.

    Args:
        image: (3, H, W).
        random: draws the cells.

    Returns:
        The label is the picture itself, valid where it is hidden.
    """
    height, width = image.shape[1:]
    side = math.ceil(min(height, width) / _CELLS)
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    order = sorted(range(rows * columns), key=lambda _: random.uniform(0, 1))
    cells = torch.zeros(rows * columns, dtype=torch.bool)
    cells[order[: math.ceil(_HIDDEN * len(order))]] = True
    hidden = cells.view(rows, columns).repeat_interleave(side, 0).repeat_interleave(side, 1)
    hidden = hidden[:height, :width].contiguous()
    return Posed(torch.where(hidden, _FILL, image), image.clone(), hidden)


#: By name, in the order in which a dataset declares them.
PRETEXT_TASKS: Mapping[str, PretextTask] = {
    each.task.name: each
    for each in (
        PretextTask(
            Task(
                name="rotation",
                kind="classification",
                channels=len(ANGLES),
                class_names=ANGLES,
            ),
            rotation,
        ),
        PretextTask(
            Task(
                name="position",
                kind="classification",
                channels=len(PLACES),
                class_names=PLACES,
            ),
            position,
        ),
        PretextTask(Task(name="colour", kind="regression", channels=2, layout="map"), colour),
        PretextTask(
            Task(name="inpainting", kind="regression", channels=3, layout="map"), inpainting
        ),
    )
}


def lab_of(image: Tensor) -> Tensor:
    """Return the colours of an sRGB picture (3, H, W) in CIE Lab: L in [0, 100], a and b."""
    image = image.double()
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(_XYZ, dtype=torch.float64)
    white = torch.tensor(_WHITE, dtype=torch.float64).view(3, 1, 1)
    xyz = torch.einsum("ij,jhw->ihw", matrix, linear) / white
    edge = 6 / 29
    x, y, z = torch.where(xyz > edge**3, xyz.clamp_min(edge**3) ** (1 / 3),
                          xyz / (3 * edge**2) + 4 / 29)  # fmt: skip
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)]).float()


def _grey(image: Tensor) -> Tensor:
    luma = image.new_tensor(_LUMA).view(3, 1, 1)
    return (image * luma).sum(0, keepdim=True).expand_as(image)


def _patch(image: Tensor, top: int, left: int, side: int) -> Tensor:
    return image[:, top : top + side, left : left + side]
