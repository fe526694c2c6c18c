"""Published lists of labelled samples, converted to the JSON that `data.labels` reads.

Two forms are in use: a matrix of zeros and ones (samples x tasks, MTPSL's for NYUv2 and Cityscapes)
and a dictionary task -> list of image names (for PASCAL-Context), which is a pickle inside an .npy
file. Only here is it read, and as nothing but plain values (`pickled_labels`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtlcore.errors import UsageError, describe, shown
from mtlcore.loading.pickled_labels import read_pickled


def convert(path: Path, tasks: Sequence[str]) -> dict[str, list[int | str]]:
    """Read a published file: task -> its labelled samples, by number or by name.

    Args:
        path: .npy, .pt, .pth, .txt or .csv with a matrix, or .npy with a dictionary.
        tasks: names of the columns of a matrix, in order; or the keys of a dictionary to keep
            (empty: all).

    Raises:
        UsageError: the file is unreadable, holds neither form, or something else than samples.
    """
    try:
        content = _read(path)
    except Exception as error:
        raise UsageError(f"{path}: cannot be read as a label file ({describe(error)})") from error
    if isinstance(content, Mapping) and content:
        missing = [task for task in tasks if task not in content]
        if missing:
            raise UsageError(
                f"{path}: has no {', '.join(missing)}; its tasks are {', '.join(map(str, content))}"
            )
        return {str(task): [*_names(content[task], f"{path}: {task}")] for task in tasks or content}
    is_matrix = isinstance(content, np.ndarray) and content.ndim == 2 and content.size
    if not is_matrix or not np.isin(content, (0, 1)).all():
        raise UsageError(
            f"{path}: expected a matrix of zeros and ones, or a dictionary, with tasks"
        )
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
        found = read_pickled(file)
    # An array without dimensions, which holds the dictionary.
    return found[0] if isinstance(found, list) and len(found) == 1 else found


def _names(samples: Any, where: str) -> Iterator[int | str]:
    """Yield the samples of a task, whatever lists and arrays they are in.

    Raises:
        UsageError: one is neither a name nor a number.
    """
    if isinstance(samples, list | tuple):
        for sample in samples:
            yield from _names(sample, where)
    elif isinstance(samples, bytes):
        yield samples.decode("utf-8", "replace")
    elif isinstance(samples, str) or (type(samples) is int and samples >= 0):
        yield samples
    elif hasattr(samples, "tolist"):  # an array, a tensor, or one number of such
        yield from _names(samples.tolist(), where)
    else:
        raise UsageError(
            f"{where}: expected names of samples, or their numbers from 0 on; got {shown(samples)}"
        )
