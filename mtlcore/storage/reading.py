"""One reader of files that hold JSON or TOML: what is well formed but of another shape is named.

A file comes from anybody, and its content may be any tree. `decoded` makes a tree of bytes,
`checked` compares it with a schema of `schemas` and says at which path it differs.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

from mtlcore.errors import MtlError, shown
from mtlcore.ranges import ANY_NUMBER, Range

if TYPE_CHECKING:
    from cattrs import Converter

_T = TypeVar("_T")
#: More than this many differences help nobody.
_MOST = 5
_MISSING = "has no"


def decoded(content: bytes | str, form: Literal["JSON", "TOML"]) -> Any:
    """Return the tree in a text.

    Raises:
        ValueError: It is not of this form, not UTF-8, or nested beyond any use.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return json.loads(text) if form == "JSON" else tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def checked(tree: Any, schema: type[_T], place: str) -> _T:
    """Return a tree that has the shape of a schema.

    Args:
        tree: What a file holds.
        schema: One of `schemas`.
        place: The file, for messages.

    Raises:
        MtlError: It has another shape; the message names the first differences by their path.
    """
    import cattrs  # late: it is heavy, and most commands read no file

    try:
        return _converter().structure(tree, schema)
    except Exception as error:  # cattrs raises groups of whatever its hooks raise
        lines = cattrs.transform_error(error, path="", format_exception=_said)
    except RecursionError:
        lines = ["it is nested too deeply"]
    told = "; ".join(map(_by_path, lines[:_MOST]))
    more = f"; and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
    raise MtlError(f"{place}: {told}{more} (it is damaged, or of another version of mtlcore)")


def _by_path(line: str) -> str:
    said, _, path = line.rpartition(" @ ")
    if said.startswith(_MISSING):
        path = path.rpartition(".")[0]  # of the table that lacks it
    path = path.lstrip(".")
    return f"{path}: {said}" if path else said


def _said(error: BaseException, _kind: type | None) -> str:
    if isinstance(error, KeyError):
        return f"{_MISSING} {error.args[0]!r}"
    # cattrs' own words for what is not a table
    return str(error).replace("a mapping, not", "a table, got") or type(error).__name__


@cache
def _converter() -> Converter:
    """Return a converter that takes nothing for what it is not."""
    import cattrs

    converter = cattrs.Converter()
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, partial(_plain, kind))
    for container, structure in ((list, _list), (tuple, _tuple), (dict, _table)):
        converter.register_structure_hook_func(
            partial(_is_of, container), partial(structure, converter)
        )
    converter.register_structure_hook_func(partial(_is_of, Annotated), partial(_marked, converter))
    return converter


def _is_of(container: Any, annotation: Any) -> bool:
    return get_origin(annotation) is container


def _plain(kind: type, value: Any, _: Any) -> Any:
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (type(value) is int and value not in ANY_NUMBER):
        raise TypeError(f"expected {kind.__name__}, got {shown(value)}")
    if isinstance(value, str):
        value.encode()  # half a character, as JSON can write it, is no text
    return value


def _marked(converter: Converter, value: Any, annotation: Any) -> Any:
    kind, *marks = get_args(annotation)
    converted = converter.structure(value, kind)
    for mark in marks:
        if isinstance(mark, Range) and converted not in mark:
            raise TypeError(f"expected {kind.__name__} {mark}, got {shown(value)}")
    return converted


def _list(converter: Converter, value: Any, annotation: Any) -> list[Any]:
    (kind,) = get_args(annotation)
    items = _of(list, value)
    return list(_each(converter, {i: (item, kind) for i, item in enumerate(items)}).values())


def _tuple(converter: Converter, value: Any, annotation: Any) -> tuple[Any, ...]:
    kinds, items = get_args(annotation), _of(list, value)
    if len(items) != len(kinds):
        raise TypeError(f"expected a list of {len(kinds)}, got {shown(value)}")
    pairs = enumerate(zip(items, kinds, strict=True))
    return tuple(_each(converter, dict(pairs)).values())


def _table(converter: Converter, value: Any, annotation: Any) -> dict[Any, Any]:
    keys, kind = get_args(annotation)
    items = {_plain(keys, key, None): (item, kind) for key, item in _of(dict, value).items()}
    return _each(converter, items)


def _of(kind: type[_T], value: Any) -> _T:
    if not isinstance(value, kind):
        called = "a table" if kind is dict else "a list"
        raise TypeError(f"expected {called}, got {shown(value)}")
    return value


def _each(converter: Converter, items: Mapping[Any, tuple[Any, Any]]) -> dict[Any, Any]:
    """Convert every (value, kind); raise all that is wrong together, with its key."""
    from cattrs.errors import IterableValidationError, IterableValidationNote

    converted, errors = {}, []
    for key, (value, kind) in items.items():
        try:
            converted[key] = converter.structure(value, kind)
        except Exception as error:  # cattrs raises groups of whatever its hooks raise
            error.add_note(IterableValidationNote(f"at {key!r}", key, kind))
            errors.append(error)
    if errors:
        raise IterableValidationError("items", errors, dict)
    return converted
