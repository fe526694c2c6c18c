"""Loading one plugin: importing it, calling its hooks, and checking what they yield.

Whatever goes wrong is kept in the `PluginInfo`, so that no plugin breaks another.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import attrs
import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mtlcore._version import __version__
from mtlcore.errors import MtlError, describe, did_you_mean
from mtlcore.plugins import hookspecs
from mtlcore.plugins.components import Component, PluginInfo
from mtlcore.plugins.foreign import called
from mtlcore.plugins.specs import KINDS, hook_name, singular

_HOOK_KINDS = {hook_name(kind): kind for kind in KINDS}


def hook_manager() -> pluggy.PluginManager:
    """Return a manager that knows the hooks and holds no plugin."""
    manager = pluggy.PluginManager("mtlcore")
    manager.add_hookspecs(hookspecs)
    return manager


def load_plugin(
    manager: pluggy.PluginManager,
    info: PluginInfo,
    load: Callable[[], Any],
    requires: tuple[str, ...] = (),
    namesake: PluginInfo | None = None,
) -> tuple[PluginInfo, list[Component]]:
    """Load a plugin; return what became of it and the components that it brings.

    Args:
        manager: Reads its hooks; holds no plugin before and after.
        info: What is known of it before.
        load: Imports its module.
        requires: The requirements of its distribution.
        namesake: An earlier plugin of the same id; a working one keeps it.
    """
    started = time.perf_counter()
    try:
        if unmet := _unmet(requires):
            reason = f"needs {unmet}, and this is mtlcore {__version__}"
            return attrs.evolve(info, status="incompatible", reason=reason), []
        if namesake and namesake.status == "ok":
            raise MtlError(f"has the same id as another, from {namesake.distribution}: rename one")
        module = called("failed to import", load)
        info = attrs.evolve(info, seconds=time.perf_counter() - started)
        components = _collect(manager, info, module)
    except Exception as error:
        cause = error.__cause__ or error
        return attrs.evolve(info, status="failed", reason=describe(error), error=cause), []
    provides: dict[str, tuple[str, ...]] = {}
    for component in components:
        provides[component.kind] = (*provides.get(component.kind, ()), component.spec.name)
    return attrs.evolve(info, provides=provides), components


def import_file(file: Path) -> Any:
    """Return the module of a plugin of one file.

    Raises:
        MtlError: There is no such file, or it is not a Python file.
    """
    if not file.is_file():
        raise MtlError("no such file")
    # Its own name for each path, registered so that its classes find their module's globals.
    name = f"mtlcore_file_{file.stem}_{crc32(bytes(file)):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise MtlError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _collect(manager: pluggy.PluginManager, info: PluginInfo, module: Any) -> list[Component]:
    """Return all a plugin yields, or raise: a plugin counts as a whole or not at all."""
    try:
        manager.register(module, name=info.id)
        return _components(manager, info, module)
    finally:  # the next one is alone with the manager, whatever this one did
        manager.unregister(name=info.id)


def _components(manager: pluggy.PluginManager, info: PluginInfo, module: Any) -> list[Component]:
    callers = manager.get_hookcallers(module) or []
    _check_marked(module, {caller.name for caller in callers})
    components: list[Component] = []
    for caller in callers:
        for impl in caller.get_hookimpls():
            kind = _HOOK_KINDS.get(caller.name)
            if kind:
                components += _checked(info, kind, _yielded(caller.name, impl.function))
            elif not impl.optionalhook:
                hint = did_you_mean(caller.name, _HOOK_KINDS)
                raise MtlError(f"implements an unknown hook {caller.name}{hint}")
    return components


def _check_marked(module: Any, implemented: set[str]) -> None:
    for name in sorted(_HOOK_KINDS.keys() - implemented):
        function = getattr(module, name, None)
        if callable(function) and not hasattr(function, "mtlcore_spec"):
            raise MtlError(f"defines {name} without @hookimpl above it")


def _checked(info: PluginInfo, kind: str, records: list[Any]) -> list[Component]:
    components: dict[str, Component] = {}
    for record in records:
        if not isinstance(record, KINDS[kind]):
            wanted = " or ".join(spec.__name__ for spec in KINDS[kind])
            given = type(record).__name__
            raise MtlError(f"yields a {given} from {hook_name(kind)}(), which takes {wanted}")
        if record.name in components:
            raise MtlError(f"yields the {singular(kind)} {record.name!r} twice")
        components[record.name] = Component(kind, record, info.id, info.distribution, info.version)
    return list(components.values())


def _yielded(hook: str, function: Callable[..., Any]) -> list[Any]:
    # A generator raises when it is walked, not when it is called.
    return called(f"failed in {hook}()", lambda: list(function()))


@functools.cache
def _unmet(requires: tuple[str, ...]) -> str:
    """Return the requirement on mtlcore that the running one does not meet, if there is one."""
    for requirement in map(Requirement, requires):
        marker, specifier = requirement.marker, requirement.specifier
        if (
            canonicalize_name(requirement.name) == "mtlcore"
            and (marker is None or marker.evaluate({"extra": ""}))
            and not specifier.contains(__version__, prereleases=True)
        ):
            return f"mtlcore{specifier}"
    return ""
