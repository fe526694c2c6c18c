"""Photographs and their labels, a file for each: what the readers of published datasets share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcore.data import DataError, Sample
from mtlcore.loading import MissingFile, Root, decode_image, decode_label, decode_text

Label = tuple[NDArray[Any], NDArray[np.bool_]]
"""A task's target and its mask."""


def read_names(root: Root, path: str) -> list[str]:
    """Return the names in a list, one per line.

    Raises:
        DataError: the list is missing, empty or no text.
    """
    lines = decode_text(root.read_bytes(path), root.where(path)).splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{root.where(path)}: lists no image")
    return names


def read_photograph(root: Root, path: str) -> tuple[Tensor, str]:
    """Return a photograph, (3, H, W) in [0, 1], and its full path.

    Raises:
        DataError: it is missing or unreadable.
    """
    where = root.where(path)
    return decode_image(root.read_bytes(path), where), where


def read_label(
    root: Root,
    path: str,
    channels: int | tuple[int, ...],
    *,
    size: tuple[int, ...] | None = None,
    bits: Literal[8, 16] | None = None,
) -> NDArray[Any]:
    """Return the raw values of a label, (H, W, channels).

    Args:
        root: the dataset's folder.
        path: of the file inside it, PNG or .npy.
        channels: the number of channels that it must have, or several that it may have.
        size: the height and width that it must have, those of its photograph; None: any.
        bits: the bits per value that it must have; None: any.

    Raises:
        MissingFile: there is no such file.
        DataError: it cannot be read, or has another shape or data type.
    """
    where = root.where(path)
    stored = decode_label(root.read_bytes(path), where)
    raw = stored[..., None] if stored.ndim == 2 else stored
    allowed = (channels,) if isinstance(channels, int) else channels
    if size is not None and (raw.shape[:2] != tuple(size) or raw.shape[2] not in allowed):
        expected = " or ".join(str((*size, number)) for number in allowed)
        raise DataError(
            f"{where}: shape {stored.shape} where {expected} was expected, "
            f"as the image is {tuple(size)} (height x width)"
        )
    if raw.shape[2] not in allowed:
        raise DataError(
            f"{where}: {raw.shape[2]} channel(s) of {raw.dtype} where "
            f"{' or '.join(map(str, allowed))} were expected"
        )
    if bits is not None and (raw.dtype != np.uint8 if bits == 8 else raw.dtype.itemsize == 1):
        raise DataError(f"{where}: must be a PNG of {bits} bits, not {raw.dtype}")
    return raw


def find_label(
    root: Root,
    path: str,
    channels: int | tuple[int, ...],
    *,
    size: tuple[int, ...] | None = None,
    bits: Literal[8, 16] | None = None,
) -> NDArray[Any] | None:
    """Return what `read_label` does, or None where there is no such file."""
    try:
        return read_label(root, path, channels, size=size, bits=bits)
    except MissingFile:
        return None


def make_sample(inputs: Tensor, labels: Mapping[str, Label | None], key: str) -> Sample:
    """Return a sample with the labels that are not None."""
    present = {task: label for task, label in labels.items() if label is not None}
    return Sample(
        inputs=inputs,
        targets={task: torch.from_numpy(target) for task, (target, _) in present.items()},
        valid={task: torch.from_numpy(valid) for task, (_, valid) in present.items()},
        key=key,
    )


def resize_nearest(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize (H, W, ...) values: each new pixel takes the old one in which its centre lies."""
    for axis, wanted in enumerate(size):
        count = values.shape[axis]
        if count != wanted:
            values = values.take((2 * np.arange(wanted) + 1) * count // (2 * wanted), axis)
    return values
