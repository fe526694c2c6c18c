"""One label file of a folder of photographs: from bytes to a target and its mask."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcore.data import DataError
from mtlcore.datasets.folder_description import LabelFiles
from mtlcore.datasets.folder_values import ValueMap, are_colours, packed, shown
from mtlcore.loading import (
    decode_label,
    is_array,
    resize_label,
    stored_turned,
    unit_normals,
)


def read_planes(label: LabelFiles, data: bytes, where: str) -> NDArray[Any]:
    """Return a label's raw values as (C, H, W); C is 1 for classes, 3 where colours stand for them.

    Transparency is left out, three equal channels count as one, and an array may have its channels
    first.

    Raises:
        DataError: the file is unreadable, or has other channels.
    """
    colours = label.values is not None and label.values.colours
    raw = decode_label(data, where, colours=colours)
    wanted = 3 if colours else 1 if label.task.dtype == "int64" else label.task.channels
    if raw.ndim == 2:
        return (
            np.broadcast_to(raw, (3, *raw.shape)) if colours else _counted(raw[None], label, where)
        )
    first = raw.shape[0] == wanted and raw.shape[2] != wanted and raw.shape[2] > 4
    planes = raw if first else raw.transpose(2, 0, 1)
    if len(planes) != wanted and not is_array(data) and len(planes) in (2, 4):
        planes = planes[:-1]  # how opaque a pixel is says nothing of its label
    if wanted == 1 and len(planes) == 3 and _all_equal(planes):
        planes = planes[:1]
    return _counted(planes, label, where)


def decode(label: LabelFiles, planes: NDArray[Any], where: str) -> tuple[Tensor, Tensor]:
    """Return the target and its mask.

    Raises:
        DataError: a value that `values` does not name, or normals without a sign.
    """
    if label.values is not None:
        return _mapped(label, label.values, planes, where)
    # Pixels are stored channels last, and what follows reads each channel more than once.
    planes = np.ascontiguousarray(planes)
    valid = _known(label.invalid, planes)
    if label.task.dtype == "int64":
        offset = int(label.offset[0, 0, 0])
        # Numbers that are not whole are left to who refuses them.
        classes = _native(planes[0]) if planes.dtype.kind == "f" else planes[0].astype(np.int64)
        return torch.from_numpy(classes + offset if offset else classes), torch.from_numpy(valid)
    if label.task.kind == "normals" and planes.dtype.kind in "bu" and not label.offset.any():
        most = np.iinfo(planes.dtype).max if planes.dtype.kind == "u" else 1
        raise DataError(
            f"{where}: holds {planes.dtype}, in which no normal has a negative component; say in "
            f"dataset.toml how its numbers become -1 to 1: tasks.{label.task.name}.scale = "
            f"{2 / most!r} and offset = -1 if 0 to {most} are meant"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by `collate`
        values = planes.astype(np.float32)
        if (label.scale != 1).any():
            values *= label.scale
        if label.offset.any():
            values += label.offset
    if label.task.kind == "normals":
        valid &= unit_normals(values)
    return torch.from_numpy(values), torch.from_numpy(valid)


def fitted(
    label: LabelFiles, data: bytes, where: str, photograph: bytes, key: str, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the target and its mask at the size of the photograph.

    Args:
        label: how the file is read.
        data: its contents.
        where: its path, for messages.
        photograph: contents of the photograph.
        key: path of the photograph, for messages.
        size: height and width of the photograph, as it is shown.

    Raises:
        DataError: the file is unreadable, or has other proportions than the photograph.
    """
    planes = read_planes(label, data, where)
    pair = decode(label, planes, where)
    if planes.shape[1:] == size:
        return pair
    if not _same_proportions(planes.shape[1:], size):
        raise DataError(_other_size(where, planes.shape[1:], key, size, photograph))
    return resize_label(label.task, *pair, size)


def is_black_and_white(planes: NDArray[Any]) -> bool | None:
    """Whether a label holds nothing but 0 and 255; None if it holds 0 alone."""
    values = planes[0]
    white = values == 255
    if not bool(np.all(white | (values == 0))):
        return False
    return True if bool(white.any()) else None


def _native(values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy in the byte order of this machine, in which alone torch takes values."""
    return np.array(values, dtype=values.dtype.newbyteorder("="))


def _all_equal(planes: NDArray[Any]) -> bool:
    return bool((planes[1:] == planes[0]).all())


def _counted(planes: NDArray[Any], label: LabelFiles, where: str) -> NDArray[Any]:
    task = label.task
    expected = 1 if task.dtype == "int64" else task.channels
    if label.values is not None and label.values.colours:
        expected = 3
    if len(planes) == expected:
        return planes
    count = f"has {len(planes)} channel(s) where task {task.name!r} needs {expected}"
    if expected == 1 and task.dtype == "int64" and len(planes) == 3 and are_colours(planes).all():
        colours = ", ".join(f"{text} = ..." for text in shown(packed(planes), colours=True))
        raise DataError(
            f"{where}: {count}: its pixels are colours, not class numbers; give each colour its "
            f"class in dataset.toml, tasks.{task.name}.values = {{{colours}}}"
        )
    raise DataError(f"{where}: {count}; convert it to {expected} (a grey image has 1, RGB has 3)")


def _mapped(
    label: LabelFiles, values: ValueMap, planes: NDArray[Any], where: str
) -> tuple[Tensor, Tensor]:
    results, valid, unknown = values(planes)
    if label.invalid is not None and bool(unknown.any()):
        unknown &= _known(label.invalid, planes)  # NaN, which no map has
    if bool(unknown.any()):
        odd = shown((packed(planes) if values.colours else planes[0])[unknown], values.colours)
        key = f"tasks.{label.task.name}"
        if values.colours and not bool(are_colours(planes)[unknown].all()):
            raise DataError(
                f"{where}: holds values that no colour has, which are whole numbers from 0 to 255, "
                f"and {key}.values names colours; convert it to 8 bits"
            )
        if values.found:
            raise DataError(
                f"{where}: {label.task.name} label {odd[0]} beside 0 and 255, which were read as 0 "
                f"and 1 because the first files hold nothing else; say what each value means: "
                f"{key}.values or .scale, and .invalid for no label"
            )
        raise DataError(
            f"{where}: {label.task.name} label {odd[0]} has no entry in {key}.values; give it a "
            f'class there ({odd[0]} = "..."), or declare that it means no label ({key}.invalid = '
            f"[{', '.join(odd)}], beside those that are there)"
        )
    target = torch.from_numpy(results)
    if label.task.dtype != "int64":
        target = target.unsqueeze(0)
    return target, torch.from_numpy(valid)


def _known(invalid: NDArray[np.float64] | None, planes: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W): a pixel has no label where every channel holds its value of one of the (K, C)."""
    if invalid is None or not len(invalid):
        return np.ones(planes.shape[1:], dtype=np.bool_)
    per_value = [reduce(operator.or_, map(_differs, planes, values)) for values in invalid.tolist()]
    return reduce(operator.and_, per_value)


def _differs(plane: NDArray[Any], value: float) -> NDArray[np.bool_]:
    if math.isnan(value):
        real: NDArray[np.bool_] = ~np.isnan(plane)
        return real
    if plane.dtype.kind in "iu" and value.is_integer():
        # In the plane's own type: a comparison with a float converts every pixel.
        info = np.iinfo(plane.dtype)
        if not info.min <= value <= info.max:
            return np.ones(plane.shape, dtype=np.bool_)
        value = int(value)
    other: NDArray[np.bool_] = plane != value
    return other


def _same_proportions(label: Sequence[int], image: Sequence[int]) -> bool:
    """Whether a label is its image at another resolution, but for rounding of less than a pixel."""
    return abs(label[0] * image[1] - label[1] * image[0]) < max(image)


def _other_size(
    where: str, label: Sequence[int], key: str, image: Sequence[int], photograph: bytes
) -> str:
    turned = stored_turned(photograph)
    if turned is not None and tuple(label) == turned[1:]:
        return (
            f"{where}: the label is {_by(label)}, as its image {key} is stored; its EXIF "
            f"orientation {turned[0]} shows that as {_by(image)} (height x width), which is what "
            "the network sees: turn the label too, or save the image upright without EXIF"
        )
    return (
        f"{where}: the label is {_by(label)} but its image {key} is {_by(image)} (height x width), "
        "which are other proportions; those of the image at another resolution are resized"
        + (f" (EXIF orientation {turned[0]} turns the image)" if turned else "")
    )


def _by(shape: Sequence[int]) -> str:
    return f"{shape[-2]}x{shape[-1]}"
