"""Reading files by fsspec, and decoding images and labels.

Local paths, `zip://`, `memory://`, `https://` and everything else that fsspec opens will do.
Files from a network are kept in `$MTLCORE_CACHE` (default `~/.cache/mtlcore`) and never fetched
twice; they are not checked for a newer version.
"""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mtlcore.data import DataError
from mtlcore.errors import UsageError, describe, did_you_mean

__all__ = [
    "MissingFile",
    "Root",
    "check_split",
    "decode_image",
    "decode_label",
    "image_tensor",
    "unit_normals",
]

_NEAR = ("file", "local", "memory")  # protocols that need no cache
_OWN_CACHES = ("simplecache", "filecache", "blockcache", "cached")
_NPY = b"\x93NUMPY"  # the name of a file is not asked: in a URL it need not come last
_EIGHT_BIT_MODES = ("L", "LA", "P", "RGB", "RGBA")


class MissingFile(DataError):
    """Raised where there is no such file: a missing label is told from an unreadable one."""


@final
class Root:
    """A folder: a local path or an fsspec URL, also a chained one (`zip://sub::file.zip`).

    No path with `..` leads out of it; symbolic links in it are followed.

    The file system is opened on first use, and again in each forked or spawned process, because
    processes must not share connections. Spawned processes do not see a `memory://` root.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._opened: tuple[int, Any, str] | None = None

    def __reduce__(self) -> tuple[type[Root], tuple[str]]:
        return Root, (self.root,)

    def __repr__(self) -> str:
        return f"Root({self.root!r})"

    def where(self, relative: str) -> str:
        """Return the full path or URL of a file, for messages."""
        links = self.root.split("::")
        first = next((i for i, link in enumerate(links) if "://" in link), len(links) - 1)
        links[first] = _join(links[first], relative)
        return "::".join(links)

    def read_bytes(self, relative: str) -> bytes:
        """Return the contents of a file; an empty `relative` means the root itself.

        Raises:
            MissingFile: there is no such file, or no such root.
            DataError: it cannot be read, with the reason.
        """
        self._refuse_way_out(relative)
        try:
            filesystem, base = self._open()
            path = _join(base, relative)
            if _is_far(self.root):
                return _cached(filesystem, path, self.where(relative)).read_bytes()
            contents: bytes = filesystem.cat_file(path)
        except KeyError as error:  # before fsspec 2026.9: an archive has no such file
            missing = not self.exists(relative)
            raise self._explain(relative, FileNotFoundError() if missing else error) from error
        except Exception as error:  # a network's file system raises what its libraries raise
            raise self._explain(relative, error) from error
        return contents

    def exists(self, relative: str) -> bool:
        """Return whether there is such a file or directory; False if the root is missing.

        Raises:
            DataError: the file system cannot tell; the message says why.
        """
        self._refuse_way_out(relative)
        try:
            filesystem, base = self._open()
            return bool(filesystem.exists(_join(base, relative)))
        except FileNotFoundError:
            return False
        except Exception as error:
            raise self._explain(relative, error) from error

    def list(self, relative_dir: str) -> list[str]:
        """Return the sorted names (not paths) of what a directory holds.

        Raises:
            MissingFile: there is no such directory, or no such root.
            DataError: it cannot be listed, with the reason.
        """
        self._refuse_way_out(relative_dir)
        try:
            filesystem, base = self._open()
            path = _join(base, relative_dir)
            paths = filesystem.ls(path, detail=False)
            if path and not paths:  # before fsspec 2026.9: empty, or an archive has no such folder
                filesystem.info(path)
        except Exception as error:
            raise self._explain(relative_dir, error) from error
        return sorted(name.rstrip("/").rpartition("/")[2] for name in paths)

    def numbers(self, folder: str) -> builtins.list[int]:
        """Return the numbers of the files 0.npy, 1.npy, ... in a folder, sorted.

        Raises:
            DataError: the folder is missing or empty, or holds something else.
        """
        stems = [name.removesuffix(".npy") for name in self.list(folder) if name[0] != "."]
        odd = [stem for stem in stems if not stem.isdecimal()]
        if odd or not stems:
            content = f"holds {odd[0]!r}" if odd else "is empty"
            raise DataError(
                f"{self.where(folder)}: {content}; files 0.npy, 1.npy, ... were expected"
            )
        return sorted(map(int, stems))

    def _open(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            from fsspec.core import url_to_fs  # late: it is slow to import

            self._opened = (os.getpid(), *url_to_fs(_with_local_archive(self.root)))
        return self._opened[1:]

    def _refuse_way_out(self, relative: str) -> None:
        """Refuse a path with `..`: lists and descriptions that come with data are not trusted."""
        if ".." in re.split(r"[/\\]", relative):
            raise DataError(
                f"{self.where(relative)}: leads out of the data's folder {self.root}; name files "
                "inside of it, or give the folder above as data.root"
            )

    def _explain(self, relative: str, error: Exception) -> DataError:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            return DataError(f"{self.where(relative)}: {describe(error)}")
        if relative and not _is_far(self.root):
            try:
                filesystem, base = self._open()
            except FileNotFoundError:
                return MissingFile(f"{self.root}: no such file or directory")
            if filesystem.isfile(base):
                hint = f"; write zip://::{self.root}" if self.root.endswith(".zip") else ""
                return MissingFile(f"{self.root}: is a file, not a directory{hint}")
            if base and not filesystem.exists(base):
                return MissingFile(f"{self.root}: no such directory")
        return MissingFile(f"{self.where(relative)}: no such file or directory")


def open_root(dataset: str, root: str | None, folder: str) -> Root:
    """Return the folder that a dataset reads from.

    Args:
        dataset: name of the dataset, for the message.
        root: what `data.root` gives.
        folder: which folder that must be, such as "the folder that holds train/".

    Raises:
        UsageError: `root` is None.
    """
    if root is None:
        raise UsageError(f"data.root: {dataset} reads files; give {folder}")
    return Root(root)


def decode_label(data: bytes, where: str) -> NDArray[Any]:
    """Return the raw values of a label: PNG (8 or 16 bits) or .npy.

    Args:
        data: contents of the file.
        where: its path, for messages.

    Returns:
        (H, W) or (H, W, C) in the file's own data type; indices where a PNG has a palette.

    Raises:
        DataError: truncated or not an image, JPEG (its compression changes labels), or 16-bit
            colour (Pillow would silently drop half of each value).
    """
    if data.startswith(_NPY):
        return _decode_npy(data, where)
    with _pillow(data, where) as image:
        if image.format == "JPEG":
            raise DataError(f"{where}: JPEG changes the values of a label; store it as PNG or .npy")
        if image.format == "PNG" and data[24] == 16 and data[25] != 0:
            raise DataError(f"{where}: 16-bit colour PNG is not supported; store it as .npy")
        return np.asarray(_loaded(image, where))


def decode_image(data: bytes, where: str) -> Tensor:
    """Return an input image: JPEG or PNG of 8 bits, or .npy (uint8, or float in [0, 1]).

    Pixels are taken as stored: a rotation in the EXIF data is not applied, because labels lie on
    the stored pixels.

    Args:
        data: contents of the file.
        where: its path, for messages.

    Returns:
        (3, H, W) float32 in [0, 1].

    Raises:
        DataError: truncated or not an image, or not of 8 bits.
    """
    if data.startswith(_NPY):
        return image_tensor(_decode_npy(data, where), where)
    with _pillow(data, where) as image:
        if image.mode not in _EIGHT_BIT_MODES:
            raise DataError(
                f"{where}: mode {image.mode}; an image must be grey or RGB of 8 bits per channel"
            )
        loaded = _loaded(image, where)
        colours = loaded if loaded.mode == "RGB" else loaded.convert("RGB")
        return image_tensor(np.asarray(colours), where)


def image_tensor(pixels: NDArray[Any], where: str) -> Tensor:
    """Convert pixels to a (3, H, W) float32 tensor in [0, 1].

    Args:
        pixels: (H, W, 3), (H, W, 1) or (H, W); uint8, or float in [0, 1].
        where: path of the image, for messages.

    Raises:
        DataError: another shape, or floats that are plainly not in [0, 1].
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise DataError(f"{where}: an image of shape {pixels.shape}; (H, W, 3) was expected")
    planes = pixels.transpose(2, 0, 1)
    if pixels.dtype == np.uint8:
        values = np.divide(planes, np.float32(255), dtype=np.float32, order="C")
    else:
        values = planes.astype(np.float32, order="C")
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if low < -0.5 or high > 1.5:  # resampling may overshoot a little
            raise DataError(
                f"{where}: image values from {low:g} to {high:g}; {pixels.dtype} images must be "
                "in [0, 1]"
            )
    return torch.from_numpy(values).expand(3, -1, -1)


def unit_normals(normals: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Scale (3, H, W) normals to unit length in place; return (H, W), where they are not zero."""
    length = np.sqrt(np.einsum("chw,chw->hw", normals, normals))
    known: NDArray[np.bool_] = length > 1e-6
    np.divide(normals, length, out=normals, where=known)
    return known


def _join(base: str, relative: str) -> str:
    if not base or not relative:
        return base or relative
    return base + relative if base.endswith("/") else f"{base}/{relative}"


def _protocol(link: str) -> str:
    return link.partition("://")[0] if "://" in link else "file"


def _is_far(root: str) -> bool:
    """Whether each file comes by itself over a network, through no cache that the URL names."""
    return "::" not in root and _protocol(root) not in _NEAR


def _with_local_archive(root: str) -> str:
    """Replace an archive on a network by its copy: reading it piece by piece would be slow."""
    head, chained, last = root.rpartition("::")
    wants_own = any(link.partition("://")[0] in _OWN_CACHES for link in head.split("::"))
    if not chained or wants_own or _protocol(last) in _NEAR:
        return root
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(last)
    return f"{head}::{_cached(filesystem, path, last)}"


def _cached(filesystem: Any, path: str, url: str) -> Path:
    """Return a local copy of a remote file, whole or not there at all.

    fsspec's own simplecache downloads under the final name, where another worker would find half a
    file, and an interrupted run would leave one for ever.
    """
    try:
        cache = Path(os.environ.get("MTLCORE_CACHE") or "~/.cache/mtlcore").expanduser()
    except RuntimeError as error:
        raise UsageError(
            "there is no home directory for what is downloaded; set MTLCORE_CACHE to a folder"
        ) from error
    folder = cache / "files"
    copy = folder / hashlib.sha256(url.encode()).hexdigest()[:40]
    if copy.exists():
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(handle)
    try:
        filesystem.get_file(path, partial)
        os.replace(partial, copy)
    finally:
        Path(partial).unlink(missing_ok=True)
    return copy


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
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: neither an image nor .npy ({len(data)} bytes)") from error
    except Exception as error:
        raise DataError(f"{where}: cannot be read: {describe(error)}") from error


def _loaded(image: Image.Image, where: str) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        raise DataError(f"{where}: cannot be read: {describe(error)}") from error
    return image


def check_split(dataset: str, split: str, splits: Sequence[str]) -> None:
    """Raise an error if a dataset has no such split.

    Args:
        dataset: name of the dataset, for the message.
        split: that is asked for.
        splits: that there are.

    Raises:
        UsageError: there is no such split; the message names those that there are.
    """
    if split not in splits:
        raise UsageError(
            f"{dataset} has no split {split!r}, only {', '.join(splits)}"
            + did_you_mean(split, splits)
        )
