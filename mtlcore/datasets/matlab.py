"""MATLAB's files: small ones are read by scipy, those of version 7.3 are HDF5."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError
from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.loading import Root


def need_scipy(dataset: str) -> Any:
    """Return `scipy.io`.

    Raises:
        UsageError: it is not installed; the message says how to get it.
    """
    return _library("scipy.io", dataset)


def need_h5py(dataset: str) -> Any:
    """Return `h5py`.

    Raises:
        UsageError: it is not installed; the message says how to get it.
    """
    return _library("h5py", dataset)


def read_variable(root: Root, path: str, variable: str, dataset: str) -> NDArray[Any]:
    """Return a variable of a MATLAB file before version 7.3, without dimensions of one.

    Args:
        root: the dataset's folder.
        path: of the file inside it.
        variable: its name.
        dataset: name of the dataset, for messages.

    Raises:
        MissingFile: there is no such file.
        UsageError: scipy is not installed.
        DataError: the file cannot be read, or has no such variable.
    """
    where, data = root.where(path), root.read_bytes(path)
    try:
        variables = need_scipy(dataset).loadmat(io.BytesIO(data), squeeze_me=True)
    except MtlError:
        raise
    except Exception as error:  # whatever is in the file, the file is at fault
        raise DataError(f"{where}: cannot be read: {describe(error)}") from error
    if variable not in variables:
        raise DataError(f"{where}: has no variable {variable!r}")
    return np.asarray(variables[variable])


@contextmanager
def opened_hdf5(root: Root, path: str, dataset: str) -> Iterator[Any]:
    """Open a MATLAB file of version 7.3, `h5py.File`, which is not read as a whole.

    Args:
        root: the dataset's folder.
        path: of the file inside it.
        dataset: name of the dataset, for messages.

    Raises:
        MissingFile: there is no such file.
        UsageError: h5py is not installed.
        DataError: it cannot be read.
    """
    h5py = need_h5py(dataset)
    with root.open(path) as stream:
        try:
            with h5py.File(stream, "r") as file:
                yield file
        except MtlError:
            raise
        except Exception as error:  # whatever is in the file, the file is at fault
            raise DataError(
                f"{root.where(path)}: cannot be read as a MATLAB file of version 7.3: "
                f"{describe(error)}"
            ) from error


def hdf5_array(file: Any, name: str, where: str) -> Any:
    """Return an array of an HDF5 file, `h5py.Dataset`; read it by its indices.

    Args:
        file: `h5py.File`.
        name: of the array.
        where: path of the file, for messages.

    Raises:
        DataError: there is none of this name, or its values lie in other files, where one that
            comes with data must not lead.
    """
    h5py = importlib.import_module("h5py")
    inside = isinstance(file.get(name, getlink=True), h5py.HardLink)
    array = file[name] if inside else None
    if not isinstance(array, h5py.Dataset) or _lies_elsewhere(array):
        raise DataError(f"{where}: has no variable {name!r} of its own")
    return array


def hdf5_texts(file: Any, name: str, where: str) -> tuple[str, ...]:
    """Return a cell array of texts in an HDF5 file; the arguments are those of `hdf5_array`.

    Raises:
        DataError: there is none of this name, or it is something else.
    """
    h5py = importlib.import_module("h5py")
    cells = hdf5_array(file, name, where)
    if h5py.check_ref_dtype(cells.dtype) is not h5py.Reference:
        raise DataError(f"{where}: {name!r} is no cell array of texts")
    texts = []
    for reference in cells[()].ravel():
        stored: Any = file[reference] if reference else None
        whole = isinstance(stored, h5py.Dataset) and not _lies_elsewhere(stored)
        codes: Any = stored[()] if whole else None
        if codes is None or codes.dtype.kind != "u" or codes.dtype.itemsize > 2:
            raise DataError(f"{where}: {name!r} is no cell array of texts")
        texts.append(codes.ravel().astype("<u2").tobytes().decode("utf-16-le"))
    return tuple(texts)


def _lies_elsewhere(array: Any) -> bool:
    return bool(array.is_virtual or array.external)


def _library(name: str, dataset: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{dataset} reads MATLAB files with {name.partition('.')[0]}, which is not installed: "
            "pip install 'mtlcore[matlab]'"
        ) from error
