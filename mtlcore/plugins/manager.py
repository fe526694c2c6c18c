"""Finding plugins, keeping them apart, and looking their components up by name.

Every plugin loads by itself: whatever goes wrong in one is kept in its ``PluginInfo`` and shown
when somebody asks for what it would have brought. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Self, TypeVar, final
from zlib import crc32

import attrs
import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mtlcore._version import __version__
from mtlcore.errors import ConfigError, MtlError, UsageError, describe, did_you_mean
from mtlcore.plugins import hookspecs
from mtlcore.plugins.catalogue import KNOWN
from mtlcore.plugins.components import Component, PluginInfo, Selection
from mtlcore.plugins.settings import structure
from mtlcore.plugins.specs import KINDS, MethodSpec, hook_name, singular

STANDARD = "standard"
_HOOK_KINDS = {hook_name(kind): kind for kind in KINDS}
_SHORT_LIST = 15
_T = TypeVar("_T")


@final
class Plugins:
    """All plugins of a run, scanned once, when this is made.

    ``standard``, the core's own components, is always there and always first.

    Args:
        allow: Load only the installed plugins with these ids; None loads all.
        block: Load none with these ids.
        files: Paths of plugins of one file each; never blocked, because they are named.
        entry_points: Take these instead of looking for what is installed.
    """

    def __init__(
        self,
        *,
        allow: Iterable[str] | None = None,
        block: Iterable[str] = (),
        files: Iterable[str] = (),
        entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
    ) -> None:
        self._allow = None if allow is None else frozenset(allow)
        self._block = frozenset(block)
        if STANDARD in self._block:
            raise UsageError(f"--no-plugin {STANDARD}: the core's own components always load")
        self._infos: list[PluginInfo] = []
        self._components: dict[str, list[Component]] = {kind: [] for kind in KINDS}
        self._files: dict[Path, PluginInfo] = {}
        own = PluginInfo(STANDARD, "mtlcore", __version__)
        self._load(own, lambda: importlib.import_module("mtlcore.standard.plugin"))
        if entry_points is None:
            entry_points = importlib.metadata.entry_points(group="mtlcore")
        for entry in sorted(entry_points, key=lambda entry: entry.name):
            self._load_entry_point(entry)
        for file in files:
            self.load_file(file)

    @classmethod
    def from_environment(cls, block: Iterable[str] = ()) -> Self:
        """Scan with the allow list of ``MTL_PLUGINS=a,b`` (empty: none but ``standard``)."""
        listed = os.environ.get("MTL_PLUGINS")
        allow = None if listed is None else [word.strip() for word in listed.split(",")]
        return cls(allow=allow, block=block)

    @property
    def infos(self) -> tuple[PluginInfo, ...]:
        """Every plugin found, working or not, in the order of loading."""
        return tuple(self._infos)

    def all(self, kind: str) -> list[Component]:
        """Return every component of a kind, in the order of loading."""
        return list(self._components[kind])

    def strict(self) -> None:
        """Raise MtlError if a plugin failed or does not fit this core."""
        bad = [str(info) for info in self._infos if info.status in ("failed", "incompatible")]
        if bad:
            raise MtlError("\n".join(bad))

    # Looking up

    def get(self, kind: str, name: str) -> Component:
        """Return the component called ``name`` or ``plugin/name``.

        Raises:
            UsageError: There is none, or the short name belongs to several plugins.
        """
        found = self._find(kind, name)
        if not found:
            raise self._unknown(singular(kind), name, [c.spec.name for c in self.all(kind)])
        return self._only(found, name)

    def default(self, kind: str, task_kind: str) -> Component:
        """Return the head, loss or metric for tasks of a kind when the configuration names none.

        Raises:
            UsageError: No component claims to be it, or several do and none of them is standard.
        """
        claims = [c for c in self.all(kind) if task_kind in getattr(c.spec, "default_for", ())]
        claims = [c for c in claims if c.plugin == STANDARD] or claims
        if len(claims) == 1:
            return claims[0]
        what = f"tasks of kind {task_kind!r} have "
        if claims:
            names = ", ".join(c.full_name for c in claims)
            what += f"several default {kind}: {names}"
        else:
            what += f"no default {singular(kind)}"
        raise UsageError(f"{what}; name one in the configuration")

    def selection(self, word: str) -> Selection:
        """Return what ``--plugin WORD`` selects.

        That is, in this order: a file's method or only balancer; the method named like the plugin;
        a method by its name; the only balancer of a plugin.

        Raises:
            UsageError: The word names nothing of these, or a plugin that did not load.
        """
        if word.endswith(".py"):
            return self._file_selection(self.load_file(word))
        methods = self._find("methods", f"{word}/{word}") or self._find("methods", word)
        if methods:
            return self._select(self._only(methods, word))
        own = [c for c in self.all("balancers") if c.plugin == word]
        if len(own) == 1:
            return self._select(own[0])
        raise self._no_selection(word)

    def _find(self, kind: str, name: str) -> list[Component]:
        plugin, slash, short = name.rpartition("/")
        found = [c for c in self._components[kind] if c.spec.name == short]
        return [c for c in found if c.plugin == plugin] if slash else found

    def _only(self, found: list[Component], name: str) -> Component:
        if len(found) == 1:
            return found[0]
        what, names = singular(found[0].kind), [f"{c.full_name} ({c.source})" for c in found]
        raise UsageError(f"{what} {name!r} is ambiguous; write one of: {', '.join(names)}")

    def _select(self, component: Component) -> Selection:
        if isinstance(component.spec, MethodSpec):
            return Selection(component.plugin, component.spec.read(), component)
        unique = len(self._find(component.kind, component.spec.name)) == 1
        name = component.spec.name if unique else component.full_name
        return Selection(component.plugin, {"balancer": {"name": name}}, component)

    def _file_selection(self, info: PluginInfo) -> Selection:
        if info.status != "ok":
            raise UsageError(str(info)) from info.error
        for kind in ("methods", "balancers"):
            own = [c for c in self.all(kind) if c.plugin == info.id]
            chosen = [c for c in own if c.kind == "methods" and c.spec.name == info.id] or own
            if len(chosen) == 1:
                return self._select(chosen[0])
        return Selection(info.id)

    # Explaining what was not found

    def _no_selection(self, word: str) -> UsageError:
        info = self._info(word)
        if info and info.status == "ok":
            methods = ", ".join(info.provides.get("methods", ())) or "none"
            balancers = ", ".join(info.provides.get("balancers", ())) or "none"
            return UsageError(
                f"plugin {word!r} has no method of that name; choose with --plugin METHOD "
                f"({methods}) or with --set balancer.name=NAME ({balancers})"
            )
        if self._find("balancers", word):
            return UsageError(f"{word!r} is a balancer: write --set balancer.name={word}")
        names = [i.id for i in self._infos if i.status == "ok" and i.id != STANDARD]
        names += [c.spec.name for c in self.all("methods")]
        return self._unknown("plugin or method", word, names)

    def _unknown(self, what: str, name: str, names: list[str]) -> UsageError:
        names = sorted(set(names))
        known = self._not_installed(name)
        absent = [] if known else [plugin for plugin in KNOWN if not self._info(plugin)]
        hint = did_you_mean(name, names) or did_you_mean(name, absent)
        suspects = self._suspects(name, explained=bool(hint or known or "/" in name))
        parts = [f"no {what} {name!r}{hint}", *map(str, suspects)]
        if 0 < len(names) <= _SHORT_LIST:
            parts.append(f"available: {', '.join(names)}")
        if known:
            parts.append(f"plugin {known} is not installed: pip install mtlcore-plugin-{known}")
        error = UsageError("; ".join(parts))
        error.__cause__ = suspects[0].error if suspects else None
        return error

    def _suspects(self, name: str, explained: bool) -> list[PluginInfo]:
        """Return the plugins that would perhaps have brought the name, had they loaded."""
        broken = [info for info in self._infos if info.status != "ok"]
        like = [info for info in broken if _resembles(info.id, name)]
        return like if like or explained else broken

    def _not_installed(self, name: str) -> str:
        plugin, _, short = name.rpartition("/")
        for known, names in KNOWN.items():
            if (plugin or short) in (known, *names) and not self._info(known):
                return known
        return ""

    def _info(self, plugin: str) -> PluginInfo | None:
        # A working plugin first: a file may bear the id of one that is blocked.
        found = [info for info in self._infos if info.id == plugin]
        return min(found, key=lambda info: info.status != "ok", default=None)

    # Loading

    def load_file(self, path: str) -> PluginInfo:
        """Load a plugin of one file, once; what is wrong with it is in the answer's reason."""
        file = Path(path).expanduser().resolve()
        if file not in self._files:
            info = PluginInfo(file.stem.replace("_", "-"), path)
            self._files[file] = self._load(info, lambda: _import_file(file))
        return self._files[file]

    def _load_entry_point(self, entry: importlib.metadata.EntryPoint) -> None:
        dist = entry.dist
        info = PluginInfo(entry.name, dist.name, dist.version) if dist else PluginInfo(entry.name)
        if entry.name == STANDARD or any(_same(info, earlier) for earlier in self._infos):
            return  # the core's own components, or a second dist-info of one distribution
        if entry.name in self._block:
            self._infos.append(attrs.evolve(info, status="blocked", reason="is blocked"))
        elif self._allow is not None and entry.name not in self._allow:
            reason = "is not in the allow list (MTL_PLUGINS)"
            self._infos.append(attrs.evolve(info, status="blocked", reason=reason))
        else:
            self._load(info, entry.load, (dist.requires if dist else None) or ())

    def _load(
        self, info: PluginInfo, load: Callable[[], Any], requires: Iterable[str] = ()
    ) -> PluginInfo:
        started = time.perf_counter()
        try:
            if unmet := _unmet(requires):
                reason = f"needs {unmet}, and this is mtlcore {__version__}"
                info = attrs.evolve(info, status="incompatible", reason=reason)
            else:
                self._check_free(info)
                module = _guarded("failed to import", load)
                info = attrs.evolve(info, seconds=time.perf_counter() - started)
                info = self._keep(info, _collect(info, module))
        except Exception as error:
            cause = error.__cause__ or error
            info = attrs.evolve(info, status="failed", reason=describe(error), error=cause)
        self._infos.append(info)
        return info

    def _check_free(self, info: PluginInfo) -> None:
        owner = self._info(info.id)
        if owner and owner.status == "ok":
            raise MtlError(f"has the same id as another, from {owner.distribution}: rename one")

    def _keep(self, info: PluginInfo, components: list[Component]) -> PluginInfo:
        provides: dict[str, tuple[str, ...]] = {}
        for component in components:
            self._components[component.kind].append(component)
            provides[component.kind] = (*provides.get(component.kind, ()), component.spec.name)
        return attrs.evolve(info, provides=provides)


def create(kind: str, name: str, *positional: Any, **settings: Any) -> Any:
    """Build a component that needs nothing from a run, such as a balancer.

    Args:
        kind: as `mtl list` names it, such as "balancers".
        name: of the component, or "plugin/name".
        positional: what the core would pass (a head's task and features ...).
        settings: as `mtl show KIND NAME` lists them.

    Raises:
        UsageError: no such component.
        ConfigError: settings that it does not take.
    """
    target = Plugins.from_environment().get(kind, name).load()
    problems: list[str] = []
    values = structure(target, settings, name, problems)
    if problems:
        raise ConfigError(problems)
    return target(*positional, **values)


def _collect(info: PluginInfo, module: Any) -> list[Component]:
    """Return all a plugin yields, or raise: a plugin counts as a whole or not at all."""
    # A manager for each plugin: nothing of one that fails is left behind.
    manager = pluggy.PluginManager("mtlcore")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=info.id)
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
    return _guarded(f"failed in {hook}()", lambda: list(function()))


def _guarded(what: str, call: Callable[[], _T]) -> _T:
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise MtlError(f"{what}: {describe(error)}") from error


def _unmet(requires: Iterable[str]) -> str:
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


def _import_file(file: Path) -> Any:
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


def _same(one: PluginInfo, other: PluginInfo) -> bool:
    names = [canonicalize_name(info.distribution) for info in (one, other)]
    return one.id == other.id and names[0] == names[1]


def _resembles(plugin: str, name: str) -> bool:
    owner, slash, short = name.rpartition("/")
    if slash:
        return plugin == owner
    if plugin == short or short in KNOWN.get(plugin, ()):
        return True
    one, other = plugin.replace("-", ""), short.replace("-", "")
    return one in other or other in one or SequenceMatcher(None, one, other).ratio() > 0.75
