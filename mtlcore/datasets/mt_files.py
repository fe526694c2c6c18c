"""What the archives PASCAL_MT and NYUD_MT have in common: lists of names, a file per label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlcore.data import DataError, Sample
from mtlcore.loading import MissingFile, Root, decode_image, decode_label

Pair = tuple[NDArray[Any], NDArray[np.bool_]]
"""A label and where it is valid."""


def read_names(root: Root, path: str) -> list[str]:
    """The names in a list, one in each line.

    Raises:
        DataError: the list is missing or empty.
    """
    lines = root.read_bytes(path).decode().splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{root.where(path)}: lists no image")
    return names


def read_label(
    root: Root, path: str, channels: int, *, eight_bit: bool = False
) -> NDArray[Any] | None:
    """(H, W, channels) values of a label; None where there is no such file.

    Args:
        root: the archive's folder.
        path: of the file, PNG or .npy.
        channels: that it must have.
        eight_bit: it must hold values of 8 bits.

    Raises:
        DataError: it cannot be read, or is another kind of file.
    """
    where = root.where(path)
    try:
        raw = decode_label(root.read_bytes(path), where)
    except MissingFile:
        return None
    raw = raw[..., None] if raw.ndim == 2 else raw
    if raw.shape[2] != channels or (eight_bit and raw.dtype != np.uint8):
        raise DataError(
            f"{where}: {raw.shape[2]} channel(s) of {raw.dtype} where {channels}"
            + (" of uint8 were expected" if eight_bit else " were expected")
        )
    return raw


def read_photograph(root: Root, path: str) -> tuple[Tensor, str]:
    """A photograph (3, H, W) in [0, 1], and where it is.

    Raises:
        DataError: it is missing or unreadable.
    """
    where = root.where(path)
    return decode_image(root.read_bytes(path), where), where


def labelled(inputs: Tensor, labels: Mapping[str, Pair | None], key: str) -> Sample:
    """A sample with those labels that there are."""
    pairs = {task: pair for task, pair in labels.items() if pair is not None}
    return Sample(
        inputs=inputs,
        targets={task: torch.from_numpy(values) for task, (values, _) in pairs.items()},
        valid={task: torch.from_numpy(known) for task, (_, known) in pairs.items()},
        key=key,
    )


def fit(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(H, W, ...) values at another size, by the pixel in which the middle of the new one lies."""
    for axis, wanted in enumerate(size):
        count = values.shape[axis]
        if count != wanted:
            values = values.take((2 * np.arange(wanted) + 1) * count // (2 * wanted), axis)
    return values
