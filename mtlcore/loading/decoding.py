"""Decoding images and labels, and what their values mean.

What is stored has one obvious meaning, or the message names the conversion that gives it one.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mtlcore.data import DataError
from mtlcore.errors import UsageError, describe

__all__ = [
    "decode_image",
    "decode_label",
    "image_tensor",
    "is_array",
    "stored_turned",
    "unit_normals",
]

_NPY = b"\x93NUMPY"  # the name of a file is not asked: in a URL it need not come last
_MAX_PIXELS = "MTLCORE_MAX_PIXELS"
_ORIENTATION = 0x0112  # the tag of EXIF
_TIFF_BITS, _TIFF_BLACK_IS_ZERO = 258, (262, 1)


def is_array(data: bytes) -> bool:
    """Return whether a file is .npy."""
    return data.startswith(_NPY)


def decode_label(data: bytes, where: str, *, colours: bool = False) -> NDArray[Any]:
    """Return the raw values of a label: PNG, TIFF and other lossless images, or .npy.

    Grey images of 1, 2 and 4 bits give the numbers that are stored. A label with an EXIF
    orientation of its own is turned as it is shown.

    Args:
        data: contents of the file.
        where: its path, for messages.
        colours: return the colours of an image with a palette, not its indices.

    Returns:
        (H, W) or (H, W, C) in the file's own data type.

    Raises:
        DataError: truncated or not an image, of lossy compression (which changes labels), or
            16-bit colour (Pillow would silently drop half of each value).
    """
    if is_array(data):
        return _decode_npy(data, where)
    with _pillow(data, where) as image:
        lossy_webp = image.format == "WEBP" and b"VP8 " in data[:64]
        if image.format in ("JPEG", "MPO", "JPEG2000") or lossy_webp:
            raise DataError(
                f"{where}: {image.format} changes the values of a label; store it as PNG or .npy"
            )
        if image.format == "PNG" and data[24] == 16 and data[25] != 0:
            raise DataError(f"{where}: 16-bit colour PNG is not supported; store it as .npy")
        bits = _bits_of_grey(image, data)
        loaded = _upright(_loaded(image, where))
        if colours and loaded.mode in ("P", "PA"):
            loaded = loaded.convert("RGB")
        values = np.asarray(loaded)
    # Pillow spreads few bits over 0 to 255, as if they were shades.
    return values // (255 // (2**bits - 1)) if bits in (2, 4) else values


def decode_image(data: bytes, where: str) -> Tensor:
    """Return an input image: a photograph of any sort, or .npy.

    It is turned as its EXIF orientation says, as every viewer and labelling tool shows it.
    Transparency is left out; CMYK and other colours become RGB; 16-bit values are divided by 65535;
    floats are in [0, 1] already.

    Args:
        data: contents of the file.
        where: its path, for messages.

    Returns:
        (3, H, W) float32 in [0, 1].

    Raises:
        DataError: truncated or not an image, or values without an obvious meaning; the message says
            what to convert to.
    """
    if is_array(data):
        return image_tensor(_decode_npy(data, where), where)
    with _pillow(data, where) as image:
        loaded = _upright(_loaded(image, where))
        if loaded.mode == "I" and image.format == "PNG":  # 16 bits, before Pillow 11.3
            return image_tensor(np.asarray(loaded).astype(np.uint16), where)
        # Numbers other than of 8 bits are what they are: convert would cut them off.
        as_they_are = loaded.mode == "RGB" or loaded.mode[0] in "IF"
        return image_tensor(np.asarray(loaded if as_they_are else loaded.convert("RGB")), where)


def image_tensor(pixels: NDArray[Any], where: str) -> Tensor:
    """Convert pixels to a (3, H, W) float32 tensor in [0, 1].

    Args:
        pixels: (H, W, 3), (H, W, 1), (H, W), (3, H, W) or (1, H, W); uint8, uint16, or numbers in
            [0, 1].
        where: path of the image, for messages.

    Raises:
        DataError: another shape, or values that are plainly not in [0, 1].
    """
    planes = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim == 3 and (pixels.shape[2] in (1, 3) or pixels.shape[0] not in (1, 3)):
        planes = pixels.transpose(2, 0, 1)
    if planes.ndim != 3 or planes.shape[0] not in (1, 3):
        raise DataError(
            f"{where}: an image of shape {pixels.shape}, and photographs have 1 or 3 channels: "
            "store it as (H, W, 3); further channels are for a dataset and a backbone of your own"
        )
    if pixels.dtype == np.uint8:
        values = np.divide(planes, np.float32(255), dtype=np.float32, order="C")
        return torch.from_numpy(values).expand(3, -1, -1)
    with np.errstate(over="ignore"):  # infinity is told below
        values = planes.astype(np.float32, order="C")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2 and (high > 255 or high == 0):
        values /= np.float32(65535)
    elif low < -0.5 or high > 1.5:  # resampling may overshoot a little
        raise DataError(
            f"{where}: image values from {low:g} to {high:g}; that has no obvious meaning as "
            f"{pixels.dtype}: store it as 8 bits (0 to 255) or 16 bits (0 to 65535), or convert it "
            "to floats in [0, 1]"
        )
    return torch.from_numpy(values).expand(3, -1, -1)


def stored_turned(data: bytes) -> tuple[int, int, int] | None:
    """Return EXIF orientation and stored height and width of a photograph that is turned by it."""
    if is_array(data):
        return None
    with Image.open(io.BytesIO(data)) as image:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
        return None if orientation == 1 else (orientation, image.height, image.width)


def unit_normals(normals: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Scale (3, H, W) normals to unit length in place; return (H, W), where they are not zero."""
    length = np.sqrt(np.einsum("chw,chw->hw", normals, normals))
    known: NDArray[np.bool_] = length > 1e-6
    np.divide(normals, length, out=normals, where=True if known.all() else known)
    return known


def _decode_npy(data: bytes, where: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # whatever is in the file, the file is at fault
        raise DataError(f"{where}: cannot be read: {describe(error)}") from error
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3):
        raise DataError(
            f"{where}: an array of {array.dtype} and shape {array.shape}; numbers of shape (H, W) "
            "or (H, W, C) were expected"
        )
    return array


def _pillow(data: bytes, where: str) -> Image.Image:
    allowed = os.environ.get(_MAX_PIXELS)
    if allowed is not None:
        if not allowed.isdecimal():
            raise UsageError(f"{_MAX_PIXELS}: {allowed!r} is not a number of pixels")
        Image.MAX_IMAGE_PIXELS = int(allowed) // 2  # Pillow warns from there, and raises at twice
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise DataError(
            f"{where}: neither an image nor .npy ({len(data)} bytes); convert it to PNG"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{where}: {describe(error)} Make it smaller, as the network sees data.size anyway; or "
            f"allow as many pixels by the environment variable {_MAX_PIXELS}"
        ) from error
    except Exception as error:
        raise DataError(f"{where}: cannot be read: {describe(error)}") from error


def _loaded(image: Image.Image, where: str) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        raise DataError(f"{where}: cannot be read: {describe(error)}") from error
    return image


def _upright(image: Image.Image) -> Image.Image:
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    turned: Image.Image = ImageOps.exif_transpose(image)
    return turned


def _bits_of_grey(image: Image.Image, data: bytes) -> int:
    """Return the bits per pixel of a grey image whose numbers Pillow would spread; else 8."""
    if image.format == "PNG" and data[25] == 0:
        return data[24]
    if image.format == "TIFF" and image.mode == "L":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(_TIFF_BLACK_IS_ZERO[0]) == _TIFF_BLACK_IS_ZERO[1]:
            return int(tags.get(_TIFF_BITS, (8,))[0])
    return 8
