"""Reading the pickles in which labels were published, without letting them build anything.

A pickle calls what it names. Even numpy's own constructors are no safe choice: with a forged data
type they take the bytes of a file for the addresses of objects. So a pickle gets stand-ins here,
which collect what the array would be made of; numpy sees bytes with a plain data type, or nothing.
"""

from __future__ import annotations

import pickle
import re
from typing import IO, Any, final

import numpy as np

_PLAIN = re.compile(r"[<>|=]?[biufSU][0-9]{1,4}")


def read_pickled(file: IO[bytes]) -> Any:
    """Return what a pickle holds: plain values, with lists for arrays.

    Raises:
        UnpicklingError: It asks for anything but arrays of numbers, texts or plain values.
    """
    return _plain(_Careful(file).load())


@final
class _Careful(pickle.Unpickler):
    """Knows the names that a pickled array needs, and nothing behind them."""

    def find_class(self, module: str, name: str) -> Any:
        package, _, last = module.partition(".")
        if package == "numpy":
            # numpy's old and new places: numpy.core.multiarray, numpy._core.multiarray.
            found = _STAND_INS.get(f"{last.removeprefix('_')}:{name}")
        else:
            found = _latin1 if (module, name) == ("_codecs", "encode") else None
        if found is None:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside of itself")


class _Type:
    """Stands for a data type."""

    def __init__(self, name: Any, *_: Any) -> None:
        self._name, self._order = str(name), "|"

    def __setstate__(self, state: Any) -> None:
        _version, order, subarray, names, fields, *_rest = state
        if subarray is not None or names is not None or fields is not None:
            raise pickle.UnpicklingError("an array has a composed data type")
        self._order = str(order)

    @property
    def holds_objects(self) -> bool:
        return self._name in ("O", "O8", "|O")

    def values(self, data: Any) -> list[Any]:
        """Return the values in bytes."""
        name = self._name if self._name[:1] in "<>|=" else self._order + self._name
        if not _PLAIN.fullmatch(name) or not isinstance(data, bytes):
            raise pickle.UnpicklingError(f"an array has the data type {self._name!r}")
        values: list[Any] = np.frombuffer(data, np.dtype(name)).tolist()
        return values


class _Array:
    """Stands for an array; its shape does not matter."""

    def __init__(self, *_: Any) -> None:
        self.items: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        _version, _shape, kind, _is_fortran, data = state
        self.items = _items(kind, data)


def _items(kind: Any, data: Any) -> list[Any]:
    if not isinstance(kind, _Type):
        raise pickle.UnpicklingError("an array has no data type")
    if not kind.holds_objects:
        return kind.values(data)
    if not isinstance(data, list):
        raise pickle.UnpicklingError("an array of objects is no list of them")
    return data


def _from_buffer(data: Any, kind: Any, *_: Any) -> _Array:
    array = _Array()
    array.items = _items(kind, bytes(data) if isinstance(data, bytes | bytearray) else data)
    return array


def _scalar(kind: Any, data: Any = None) -> Any:
    if not isinstance(kind, _Type):
        raise pickle.UnpicklingError("a number has no data type")
    return (kind.values(data) or [None])[0]


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Return the bytes that old protocols write as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes as {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    "core.multiarray:_reconstruct": _Array,
    "core.multiarray:scalar": _scalar,
    "core.numeric:_frombuffer": _from_buffer,
    ":ndarray": _Array,
    ":dtype": _Type,
}


def _plain(value: Any) -> Any:
    """Return a tree of plain values; what was an array of one object is that object."""
    if isinstance(value, _Array):
        return [_plain(item) for item in value.items]
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str | int)]:
            raise pickle.UnpicklingError(f"it holds a key of type {type(odd[0]).__name__}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
