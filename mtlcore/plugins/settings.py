"""The settings of a component: the annotated keyword-only parameters of its class or function.

Their meaning is read from the `Args:` section of the docstring. `structuring` checks the values
that users give.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterable
from enum import Enum
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    Union,
    cast,
    final,
    get_args,
    get_origin,
    get_type_hints,
)

import attrs

from mtlcore.errors import MtlError
from mtlcore.ranges import Length, Nested, Range


class _Required(Enum):
    REQUIRED = "required"


#: The default of a setting that has none.
REQUIRED: Final = _Required.REQUIRED


#: The name that stands for no component where a setting may be one or none.
NO_COMPONENT: Final = "none"


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
        """Its type as people read it, such as `float > 0 | None` or `'a' | 'b'`."""
        return type_name(self.annotation)


def settings_of(target: Any) -> tuple[Setting, ...]:
    """Return the settings of a class or function, in the order of its signature.

    Raises:
        MtlError: An annotation names something that its module does not define.
    """
    if isinstance(target, type) and attrs.has(target):
        return _fields(target, [a for a in attrs.fields(target) if a.init and a.kw_only])
    parameters = {
        p.name: p
        for p in inspect.signature(target).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.annotation is not p.empty
    }
    if not parameters:
        return ()
    owner: Any = target
    function = inspect.unwrap(owner.__init__) if inspect.isclass(target) else inspect.unwrap(owner)
    hints, meanings = _hints(function, parameters), _meanings(target)
    return tuple(
        Setting(
            name,
            hints[name],
            REQUIRED if parameter.default is parameter.empty else parameter.default,
            meanings.get(name, ""),
        )
        for name, parameter in parameters.items()
    )


def expanded(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """Return the settings, each nested record followed by its own ones as `record.name`."""
    result: list[Setting] = []
    for setting in settings:
        result.append(setting)
        record = _record(setting.annotation)
        for inner in expanded(record_settings(record)) if record else ():
            value = setting.default
            for part in inner.name.split("."):
                value = getattr(value, part, inner.default)
            name = f"{setting.name}.{inner.name}"
            result.append(attrs.evolve(inner, name=name, default=value))
    return tuple(result)


def type_name(annotation: Any) -> str:
    """Return a type as people read it, with its range."""
    kind, marks = unmarked(annotation)
    if nested := nested_in(annotation):
        return str(nested)
    if marks:
        return " ".join([type_name(kind), *map(str, marks)])
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


def nested_in(annotation: Any) -> Nested | None:
    """Return the mark of a setting that is another component; None for any other setting."""
    if get_origin(annotation) is not Annotated:
        return None
    return next((mark for mark in get_args(annotation)[1:] if isinstance(mark, Nested)), None)


def unmarked(annotation: Any) -> tuple[Any, tuple[Range | Length, ...]]:
    """Return a type without its marks, and those of them that limit its values."""
    if get_origin(annotation) is not Annotated:
        return annotation, ()
    kind, *marks = get_args(annotation)
    return kind, tuple(mark for mark in marks if isinstance(mark, Range | Length))


def _record(annotation: Any) -> Any:
    """Return the attrs class an annotation is, or allows beside None."""
    annotation, _ = unmarked(annotation)
    options = [a for a in get_args(annotation) or (annotation,) if a is not types.NoneType]
    return options[0] if len(options) == 1 and attrs.has(options[0]) else None


def record_settings(record: type) -> tuple[Setting, ...]:
    """Return the settings of an attrs class: all of its fields."""
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
            hints |= get_type_hints(
                types.SimpleNamespace(__annotations__=wanted), namespace, include_extras=True
            )
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
