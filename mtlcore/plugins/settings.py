"""The settings of a component: the annotated keyword-only parameters of its class or function.

Their meaning is read from the `Args:` section of the docstring. Values that users give are
checked against the annotations, strictly: a string is never taken for a number.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import types
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from enum import Enum
from typing import (
    Any,
    Final,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    cast,
    final,
    get_args,
    get_origin,
    get_type_hints,
)

import attrs

from mtlcore.errors import MtlError, did_you_mean


class _Required(Enum):
    REQUIRED = "required"


_K = TypeVar("_K", bound=Hashable)
#: The default of a setting that has none.
REQUIRED: Final = _Required.REQUIRED


@final
@attrs.frozen
class Setting:
    """One setting of a component.

    Args:
        name: The parameter's name; with dots inside a nested record.
        annotation: Its type.
        default: Its default, `REQUIRED`, or `...` where the record computes it.
        meaning: What the docstring says about it.
    """

    name: str
    annotation: Any
    default: Any
    meaning: str

    @property
    def type(self) -> str:
        """Its type as people read it, such as `float | None` or `'a' | 'b'`."""
        return type_name(self.annotation)


class _Mismatch(Exception):
    def __init__(self, *problems: str) -> None:
        self.problems = problems


def settings_of(target: Any) -> tuple[Setting, ...]:
    """Return the settings of a class or function, in the order of its signature.

    Raises:
        MtlError: An annotation names something that its module does not define.
    """
    if isinstance(target, type) and attrs.has(target):
        return _fields(target, [a for a in attrs.fields(target) if a.init and a.kw_only])
    found = {
        p.name: p
        for p in inspect.signature(target).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.annotation is not p.empty
    }
    if not found:
        return ()
    owner: Any = target
    function = inspect.unwrap(owner.__init__) if inspect.isclass(target) else inspect.unwrap(owner)
    hints, meanings = _hints(function, found), _meanings(target)
    return tuple(
        Setting(
            name,
            hints[name],
            REQUIRED if parameter.default is parameter.empty else parameter.default,
            meanings.get(name, ""),
        )
        for name, parameter in found.items()
    )


def expanded(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """Return the settings, each nested record followed by its own ones as `record.name`."""
    result: list[Setting] = []
    for setting in settings:
        result.append(setting)
        record = _record(setting.annotation)
        for inner in expanded(_record_settings(record)) if record else ():
            value = setting.default
            for part in inner.name.split("."):
                value = getattr(value, part, inner.default)
            name = f"{setting.name}.{inner.name}"
            result.append(attrs.evolve(inner, name=name, default=value))
    return tuple(result)


def structure(
    target: Any,
    given: Mapping[str, Any],
    path: str,
    problems: list[str],
    reserved: Collection[str] = (),
    others: Collection[str] = (),
) -> dict[str, Any]:
    """Return the given settings converted to what the target takes; leave out what does not fit.

    Args:
        target: The class or function.
        given: What the user wrote.
        path: Where, for messages, such as `balancer`.
        problems: Receives one line, `path.key: message`, for everything that is wrong.
        reserved: Names that the caller passes itself; no setting of a user.
        others: Keys of the same table that are not the target's, for messages.
    """
    settings = [setting for setting in settings_of(target) if setting.name not in reserved]
    return _structure(settings, given, path, problems, others)


def type_name(annotation: Any) -> str:
    """Return a type as people read it."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in (None, types.NoneType):
        return "None"
    if origin is Literal:
        return " | ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_name, args))
    if origin and args:
        inner = ", ".join("..." if arg is ... else type_name(arg) for arg in args)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return str(getattr(annotation, "__name__", annotation))


def _structure(
    settings: Sequence[Setting],
    given: Any,
    path: str,
    problems: list[str],
    others: Collection[str] = (),
) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        problems.append(f"{path}: expected a table of settings, got {given!r}")
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


def _convert(value: Any, kind: Any, path: str) -> Any:
    """Return the value as the kind, or raise _Mismatch with all that is wrong."""
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
        fits = type(value) is float or (type(value) is int and abs(value) < sys.float_info.max)
        value = float(value) if fits else value
    elif origin in (bool, int, str, types.NoneType):
        fits = type(value) is origin
    elif origin in (list, tuple, dict, Sequence, Mapping):
        fits = False
    else:
        return _other(value, kind, path)
    return value if fits else _refuse(value, kind, path)


def _refuse(value: Any, kind: Any, path: str) -> NoReturn:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    hint = did_you_mean(str(value), map(str, choices))
    raise _Mismatch(f"{path}: expected {type_name(kind)}, got {value!r}{hint}")


def _union(value: Any, kind: Any, path: str) -> Any:
    inner: list[_Mismatch] = []
    # 3 is an int before it is a float.
    for member in sorted(get_args(kind), key=lambda member: member is not type(value)):
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
    values = _structure(_record_settings(record), value, path, problems)
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


def _record(annotation: Any) -> Any:
    """Return the attrs class an annotation is, or allows beside None."""
    options = [a for a in get_args(annotation) or (annotation,) if a is not types.NoneType]
    return options[0] if len(options) == 1 and attrs.has(options[0]) else None


def _record_settings(record: type) -> tuple[Setting, ...]:
    return _fields(record, [a for a in attrs.fields(record) if a.init])


def _fields(record: type, fields: list[attrs.Attribute[Any]]) -> tuple[Setting, ...]:
    hints, meanings = _hints(record, [field.name for field in fields]), _meanings(record)
    names = [field.alias or field.name for field in fields]
    return tuple(
        Setting(name, hints.get(field.name, Any), _default(field), meanings.get(name, ""))
        for name, field in zip(names, fields, strict=True)
    )


def _default(field: attrs.Attribute[Any]) -> Any:
    default: Any = field.default
    if default is attrs.NOTHING:
        return REQUIRED
    if isinstance(default, cast(Any, attrs.Factory)):
        return ... if default.takes_self else default.factory()
    return default


def _hints(owner: Any, names: Iterable[str]) -> dict[str, Any]:
    """Resolve the annotations of these names alone: the others may exist for type checkers only."""
    hints: dict[str, Any] = {}
    try:
        for part in reversed(owner.__mro__) if isinstance(owner, type) else (owner,):
            own = inspect.get_annotations(part)
            namespace = getattr(part, "__globals__", None) or vars(sys.modules[part.__module__])
            wanted = {name: own[name] for name in names if name in own}
            hints |= get_type_hints(types.SimpleNamespace(__annotations__=wanted), namespace)
    except NameError as error:
        raise MtlError(f"{owner.__module__}.{owner.__qualname__}: annotation: {error}") from error
    return hints


_ARGS = re.compile(r"^Args:[ \t]*\n((?:[ \t]+\S.*\n|[ \t]*\n)*)", re.MULTILINE)
_ARG = re.compile(r"^(\w+)(?: \([^)]*\))?:(.*\n(?:[ \t]+\S.*\n|[ \t]*\n)*)", re.MULTILINE)


def _meanings(target: Any) -> dict[str, str]:
    """Read what the `Args:` sections of a function, or of a class and its bases, say."""
    documented: list[Any] = [target]
    if isinstance(target, type):
        documented = [p for base in target.__mro__ for p in (base, vars(base).get("__init__"))]
    meanings: dict[str, str] = {}
    for part in documented:
        docstring = inspect.cleandoc(getattr(part, "__doc__", None) or "")
        for section in _ARGS.findall(docstring + "\n"):
            for name, text in _ARG.findall(textwrap.dedent(section)):
                meanings.setdefault(name, " ".join(text.split()))
    return meanings
