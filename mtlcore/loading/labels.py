"""Published lists of labelled samples, converted to the JSON that `data.labels` reads.

Two forms are in use: a matrix of zeros and ones (samples x tasks, MTPSL's for NYUv2 and Cityscapes)
and a dictionary task -> list of image names (for PASCAL-Context), which is a pickle inside an .npy
file. Only here is it read, and with nothing allowed in it but numpy arrays and plain values.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtlcore.errors import UsageError, describe

# What a pickled numpy array or scalar needs, in numpy's old and new places.
_ALLOWED = {
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{package}.multiarray", "_reconstruct"),
        (f"{package}.multiarray", "scalar"),
        (f"{package}.numeric", "_frombuffer"),
    )
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


def convert(path: Path, tasks: Sequence[str]) -> dict[str, list[int | str]]:
    """Read a published file: task -> its labelled samples, by number or by name.

    Args:
        path: .npy, .pt, .pth, .txt or .csv with a matrix, or .npy with a dictionary.
        tasks: names of the columns of a matrix, in order; or the keys of a dictionary to keep
            (empty: all).

    Raises:
        UsageError: the file is unreadable, or holds neither form.
    """
    try:
        content = _read(path)
    except Exception as error:
        raise UsageError(f"{path}: cannot be read as a label file ({describe(error)})") from error
    if isinstance(content, Mapping):
        missing = [task for task in tasks if task not in content]
        if missing:
            raise UsageError(
                f"{path}: has no {', '.join(missing)}; its tasks are {', '.join(map(str, content))}"
            )
        return {str(task): _names(content[task]) for task in tasks or content}
    if content.ndim != 2 or not np.isin(content, (0, 1)).all():
        raise UsageError(f"{path}: expected a matrix of zeros and ones, or a dictionary")
    if content.shape[1] != len(tasks):
        raise UsageError(
            f"{path}: has {content.shape[1]} columns; name their tasks in order by --tasks a,b,..."
        )
    return {task: [*np.flatnonzero(content[:, i]).tolist()] for i, task in enumerate(tasks)}


def _read(path: Path) -> Any:
    if path.suffix in (".pt", ".pth"):
        import torch

        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return loaded if isinstance(loaded, Mapping) else np.asarray(loaded)
    if path.suffix in (".txt", ".csv"):
        text = path.read_text("utf-8")
        return np.loadtxt(io.StringIO(text), delimiter="," if "," in text else None, ndmin=2)
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        _shape, _order, dtype = read(file)
        if not dtype.hasobject:
            file.seek(0)
            return np.load(file, allow_pickle=False)
        array = _Careful(file).load()
    return array.item()


class _Careful(pickle.Unpickler):
    """Refuses whatever is not an array: a pickle may run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
        return super().find_class(module, name)


def _names(samples: Any) -> list[int | str]:
    return [x if isinstance(x, int) else str(x) for x in np.asarray(samples).ravel().tolist()]
