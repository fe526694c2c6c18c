"""Checkpoints: one safetensors file each, written atomically, never a pickle.

The file holds the tensors of a nested state under their paths. Everything else is JSON in the
file's header: a tree in which a tensor is `{"$tensor": path}`. Tuples and dictionaries whose keys
are not strings are marked too, so that what is read equals what was written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlcore.errors import MtlError, describe, shown
from mtlcore.storage.reading import decoded

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = "mtlcore-1"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a nested state of tensors, numbers, strings, lists, tuples and dictionaries.

    Raises:
        MtlError: A value has another type, or the file cannot be written. An earlier file is left
            as it was.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "", tensors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            save_file(tensors, partial, {"format": _FORMAT, "tree": json.dumps(tree)})
            _flush(partial)
        _flush(path.parent)
    except Exception as error:
        raise MtlError(
            f"{path}: the checkpoint cannot be written ({describe(error)}); "
            "the last one is untouched, --resume goes on from there"
        ) from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; afterwards rename it to `path`, or delete it after an error."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        # The file is there only after an error. A disk that refuses to write may refuse to delete
        # too, and the first error is the one to report.
        with suppress(OSError):
            partial.unlink()


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state that `save_checkpoint` wrote, on the CPU.

    Raises:
        MtlError: The file is missing, truncated, or not a checkpoint of mtlcore.
    """
    try:
        header, tensors = _read(path)
    except FileNotFoundError as error:
        raise MtlError(f"{path}: no such checkpoint") from error
    except Exception as error:
        raise MtlError(f"{path}: not a readable checkpoint ({describe(error)})") from error
    if header.get("format") != _FORMAT:
        raise MtlError(
            f"{path}: not a checkpoint of this version of mtlcore "
            f"(its format is {header.get('format', 'not named')}, expected {_FORMAT})"
        )
    try:
        state = _unpack(decoded(header["tree"], "JSON"), tensors)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise MtlError(f"{path}: not a readable checkpoint ({describe(error)})") from error
    if not isinstance(state, dict):
        raise MtlError(f"{path}: not a readable checkpoint (its tree is {shown(state)})")
    return state


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return header and tensors of one file, also while a run replaces it by the next.

    safetensors opens the path twice, for the header and for the tensors, and may get two files.
    """
    from safetensors import safe_open

    while True:
        before = _identity(path)
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception:
            if _identity(path) == before:
                raise  # nobody replaced it: it is what cannot be read
            continue
        if _identity(path) == before:
            return header, tensors


def _identity(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        # Tied weights and views become tensors of their own: safetensors refuses shared memory.
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"$tensor": path}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _pack(x, f"{path}/{key}", tensors) for key, x in value.items()}
        pairs = [[_pack(k, path, tensors), _pack(x, f"{path}/{k}", tensors)]
                 for k, x in value.items()]  # fmt: skip
        return {"$dict": pairs}
    if isinstance(value, list | tuple):
        items = [_pack(x, f"{path}/{i}", tensors) for i, x in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise MtlError(f"a checkpoint cannot hold {type(value).__name__} (at {path})")


def _unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$dict" in tree:
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in tree["$dict"]}
    if "$tuple" in tree:
        return tuple(_unpack(item, tensors) for item in tree["$tuple"])
    return {key: _unpack(item, tensors) for key, item in tree.items()}


def _flush(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
