"""The data that `mtl plugins`, `mtl list` and `mtl show` print."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mtlcore.errors import MtlError, UsageError
from mtlcore.plugins import (
    KINDS,
    REQUIRED,
    Component,
    MethodSpec,
    NotPlain,
    Plugins,
    Setting,
    as_plain,
    expanded,
    settings_of,
)

_GROUPS = ("losses", "Gramian", "gradients", "unknown")
_SECTION = re.compile(r"^(?:Args|Attributes|Returns|Yields|Raises|Example):+$", re.MULTILINE)


def plugins_data(plugins: Plugins) -> list[dict[str, Any]]:
    """Return what became of every plugin, ready for JSON."""
    return [
        {
            "id": info.id,
            "distribution": info.distribution,
            "version": info.version,
            "status": info.status,
            "provides": {kind: list(names) for kind, names in info.provides.items()},
            "import_ms": round(info.seconds * 1000, 1),
            "reason": info.reason,
        }
        for info in plugins.infos
    ]


def list_data(plugins: Plugins, kind: str | None = None) -> list[dict[str, Any]]:
    """Return every component of a kind, or of all kinds, ready for JSON."""
    return [
        {
            "kind": component.kind,
            "name": component.spec.name,
            "plugin": component.plugin,
            "summary": component.spec.summary,
        }
        for each in ([kind] if kind else KINDS)
        for component in sorted(plugins.all(each), key=lambda component: component.spec.name)
    ]


def balancers_by_group(plugins: Plugins) -> list[dict[str, Any]]:
    """Return all balancers in groups, by what they look at; each row says so as `looks at`.

    Their classes tell, so targets are loaded; "unknown" where one cannot be, or a function does not
    say what it returns.
    """
    rows = [
        {"looks at": _looks_at(plugins.get("balancers", f"{row['plugin']}/{row['name']}")), **row}
        for row in list_data(plugins, "balancers")
    ]
    return sorted(rows, key=lambda row: _GROUPS.index(row["looks at"]))


def _looks_at(component: Component) -> str:
    """Return what a balancer decides by."""
    from mtlcore.balancing import GramianBalancer, LossBalancer, RowBalancer  # late: imports torch

    try:
        made = component.made()
    except MtlError:  # its own message is shown to who asks for it
        made = None
    kinds = (LossBalancer, GramianBalancer, RowBalancer)
    found = (what for kind, what in zip(kinds, _GROUPS, strict=False) if _is_a(made, kind))
    return next(found, _GROUPS[-1])


def _is_a(made: Any, kind: type) -> bool:
    return isinstance(made, type) and issubclass(made, kind)


def show_data(
    plugins: Plugins, kind: str, name: str, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Return everything about one component, ready for JSON.

    Args:
        plugins: Where the component is looked up.
        kind: One of `KINDS`.
        name: The component's name, or `plugin/name`.
        overrides: `path=value` assignments under which a method's parameters are counted and a
            backbone is built to be described.
    """
    component = plugins.get(kind, name)
    if overrides and kind not in ("methods", "backbones"):
        raise UsageError(
            f"--set: only methods and backbones are shown under other settings, not {kind}"
        )
    spec = component.spec
    data: dict[str, Any] = {
        "kind": kind,
        "name": spec.name,
        "plugin": component.plugin,
        "distribution": component.distribution,
        "version": component.version,
        "summary": spec.summary,
        "paper": spec.paper,
    }
    for field in ("task_kinds", "default_for", "requires"):
        if hasattr(spec, field):
            data[field] = list(getattr(spec, field))
    if isinstance(spec, MethodSpec):
        return data | method_details(plugins, component, list(overrides))
    target = component.load()
    if kind in ("datasets", "backbones"):
        data["input_kind"] = getattr(target, "input_kind", "image")
    data["target"] = _target(spec)
    data["about"] = about(target)
    data["settings"] = settings_data(target)
    if overrides and kind == "backbones":
        chosen = f"model.backbone.name={component.full_name}"
        data["backbone"] = _backbone(plugins, [], [chosen, *overrides])
    return data


def about(target: Any) -> str:
    """Return the part of the docstring before its first section."""
    return _SECTION.split(inspect.cleandoc(target.__doc__ or ""), maxsplit=1)[0].strip()


def settings_data(target: Any) -> list[dict[str, Any]]:
    """Return the settings of a class or function, with those of nested records, ready for JSON."""
    return [_setting(setting) for setting in expanded(settings_of(target))]


def method_details(plugins: Plugins, component: Component, overrides: list[str]) -> dict[str, Any]:
    """Return a method's preset, and its parameters and operations under the overrides."""
    # late: it imports torch
    from mtlcore.runs import count_method_flops, count_method_parameters

    preset = component.load()
    counted = count_method_parameters(plugins, component.full_name, overrides)
    prediction = count_method_flops(plugins, component.full_name, overrides)
    backbone = _backbone(plugins, [component.full_name], overrides)
    return {
        "preset": preset,
        "parameters": counted,
        "prediction": prediction,
        "backbone": backbone,
    }


def _backbone(
    plugins: Plugins, selected: Sequence[str], overrides: Sequence[str]
) -> dict[str, object]:
    from mtlcore.runs import describe_backbone  # late: it imports torch

    return describe_backbone(plugins, selected, overrides)


def table(rows: Iterable[Sequence[str]], width: int | None = None) -> Iterator[str]:
    """Yield rows as lines of aligned columns, cut to a width where one is given."""
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        yield line if width is None or len(line) <= width else line[: max(width - 3, 0)] + "..."


def _target(spec: Any) -> str:
    target = spec.target
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"


def _setting(setting: Setting) -> dict[str, Any]:
    required = setting.default is REQUIRED
    return {
        "name": setting.name,
        "type": setting.type,
        "required": required,
        "default": None if required else _plain(setting.default),
        "meaning": setting.meaning,
    }


def _plain(value: Any) -> Any:
    """Return a default as JSON has it, or its repr where JSON has no such value."""
    try:
        plain = as_plain(value)
    except NotPlain:
        return repr(value)
    return _finite(plain)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    known = value is None or isinstance(value, bool | int | float | str)
    return value if known and not _is_unbounded(value) else repr(value)


def _is_unbounded(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
