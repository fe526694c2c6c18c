"""Checking what users give for settings, and converting it to the types of the annotations.

The check is strict: a string is never taken for a number, and a number lies in the range that its
annotation declares (`mtlcore.ranges`).
"""

from __future__ import annotations

import math
import types
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import attrs

from mtlcore.errors import did_you_mean, shown
from mtlcore.plugins.settings import (
    REQUIRED,
    Setting,
    nested_in,
    record_settings,
    settings_of,
    type_name,
    unmarked,
)
from mtlcore.ranges import ANY_NUMBER, Range

_K = TypeVar("_K", bound=Hashable)


def structure(
    target: Any,
    given: Mapping[str, Any],
    path: str,
    problems: list[str],
    reserved: Collection[str] = (),
    others: Collection[str] = (),
) -> dict[str, Any]:
    """Convert settings to the types that a target takes; leave out those that do not fit.

    A setting that is another component stays the table that it is: who knows the plugins makes a
    component of it.

    Args:
        target: The class or function.
        given: The settings as the user wrote them.
        path: The path of their table, such as `balancer`, for messages.
        problems: Receives one line, `path.key: message`, per problem.
        reserved: Parameters that the caller passes itself; users cannot set them.
        others: Keys of the same table that are not the target's, for messages.
    """
    settings = [setting for setting in settings_of(target) if setting.name not in reserved]
    return _structure(settings, given, path, problems, others)


def convert(value: Any, annotation: Any, path: str, problems: list[str]) -> Any:
    """Return one value as a type takes it; None, with a problem more, where it does not fit.

    Args:
        value: What the user wrote.
        annotation: The type, with its range.
        path: The value's path, for messages.
        problems: Receives one line, `path: message`, per problem.
    """
    return _convert_all({path: (value, annotation, path)}, problems).get(path)


class _Mismatch(Exception):
    def __init__(self, *problems: str) -> None:
        self.problems = problems


def _structure(
    settings: Sequence[Setting],
    given: Any,
    path: str,
    problems: list[str],
    others: Collection[str] = (),
) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        problems.append(f"{path}: expected a table of settings, got {shown(given)}")
        return {}
    known = {setting.name: setting for setting in settings}
    names = [*known, *others]
    listed = f"known: {', '.join(names)}" if names else "it has no settings"
    problems += [
        f"{_join(path, key)}: unknown setting{did_you_mean(str(key), names)} ({listed})"
        for key in given
        if key not in known
    ]
    problems += [
        f"{_join(path, name)}: is required ({setting.type})"
        for name, setting in known.items()
        if name not in given and setting.default is REQUIRED
    ]
    items = {
        name: (given[name], setting.annotation, _join(path, name))
        for name, setting in known.items()
        if name in given
    }
    return _convert_all(items, problems)


def _convert_all(items: Mapping[_K, tuple[Any, Any, str]], problems: list[str]) -> dict[_K, Any]:
    """Convert every (value, kind, path); leave out what does not fit and note why."""
    converted: dict[_K, Any] = {}
    for key, item in items.items():
        try:
            converted[key] = _convert(*item)
        except _Mismatch as mismatch:
            problems += mismatch.problems
    return converted


def _convert(value: Any, annotation: Any, path: str) -> Any:
    """Return the value as the kind, or raise _Mismatch with all that is wrong."""
    if nested := nested_in(annotation):
        unset = value is None and types.NoneType in get_args(unmarked(annotation)[0])
        return value if unset or value in nested else _refuse(value, annotation, path)
    kind, marks = unmarked(annotation)
    if kind in (int, float) and not any(isinstance(mark, Range) for mark in marks):
        marks = (*marks, ANY_NUMBER)
    try:
        converted = _convert_type(value, kind, path)
    except _Mismatch as mismatch:
        # A type that does not fit is refused with its range.
        if mismatch.problems[0].startswith(f"{path}: expected"):
            _refuse(value, annotation, path)
        raise
    return (
        converted if all(converted in mark for mark in marks) else _refuse(value, annotation, path)
    )


def _convert_type(value: Any, kind: Any, path: str) -> Any:
    origin = get_origin(kind) or kind
    fits: Any
    if origin in (Union, types.UnionType):
        return _union(value, kind, path)
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        return _sequence(value, kind, path)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        _, inner = get_args(kind) or (Any, Any)
        return _whole({key: (item, inner, _join(path, key)) for key, item in value.items()})
    if attrs.has(origin) and not isinstance(value, origin):
        return _build(value, origin, path)
    if kind is Any:
        fits = True
    elif origin is Literal:
        fits = any(type(value) is type(a) and value == a for a in get_args(kind))
    elif origin is float:
        fits = type(value) is float or (type(value) is int and value in ANY_NUMBER)
        value = float(value) if fits else value
    elif origin in (bool, int, str, types.NoneType):
        fits = type(value) is origin
    elif origin in (list, tuple, dict, Sequence, Mapping):
        fits = False
    else:
        return _other(value, kind, path)
    return value if fits else _refuse(value, kind, path)


def _refuse(value: Any, kind: Any, path: str) -> NoReturn:
    plain, _ = unmarked(kind)
    choices = get_args(plain) if get_origin(plain) is Literal else ()
    hint = did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
    if type(value) is float and value not in ANY_NUMBER:
        hint = " (NaN is no number)" if math.isnan(value) else " (not finite in single precision)"
    elif type(value) is int and value not in ANY_NUMBER:
        hint = " (it has more than 64 bits)"
    raise _Mismatch(f"{path}: expected {type_name(kind)}, got {shown(value)}{hint}")


def _union(value: Any, kind: Any, path: str) -> Any:
    inner: list[_Mismatch] = []
    # 3 is an int before it is a float.
    for member in sorted(get_args(kind), key=lambda member: unmarked(member)[0] is not type(value)):
        try:
            return _convert(value, member, path)
        except _Mismatch as mismatch:
            if not mismatch.problems[0].startswith(f"{path}: expected"):
                inner.append(mismatch)
    # What is wrong inside a list or record says more than "expected A | B".
    if len(inner) == 1:
        raise inner[0]
    return _refuse(value, kind, path)


def _sequence(value: Sequence[Any], kind: Any, path: str) -> Any:
    args, is_tuple = get_args(kind), (get_origin(kind) or kind) is tuple
    kinds = (args[0] if args else Any,) * len(value)
    if is_tuple and args and args[-1] is not ...:
        kinds = args
    if len(kinds) != len(value):
        return _refuse(value, kind, path)
    pairs = enumerate(zip(value, kinds, strict=True))
    items = _whole({i: (item, inner, f"{path}[{i}]") for i, (item, inner) in pairs}).values()
    return tuple(items) if is_tuple else list(items)


def _whole(items: Mapping[_K, tuple[Any, Any, str]]) -> dict[_K, Any]:
    problems: list[str] = []
    converted = _convert_all(items, problems)
    if problems:
        raise _Mismatch(*problems)
    return converted


def _build(value: Any, record: type, path: str) -> Any:
    problems: list[str] = []
    values = _structure(record_settings(record), value, path, problems)
    if problems:
        raise _Mismatch(*problems)
    try:
        return record(**values)
    except (TypeError, ValueError) as error:  # the record's own validation
        raise _Mismatch(f"{path}: {error.args[0] if error.args else error}") from error


def _other(value: Any, kind: Any, path: str) -> Any:
    """Convert to a type that is none of the configuration's own, such as a path or an enum."""
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    import cattrs  # late: most commands never need it

    try:
        return cattrs.structure(value, kind)
    except Exception:  # whatever the type's own constructor raises
        return _refuse(value, kind, path)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
