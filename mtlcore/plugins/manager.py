"""Scanning for plugins, and looking their components up by name.

Every plugin loads by itself: what goes wrong in one is kept in its `PluginInfo` and shown when
somebody asks for a component that it would have brought. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self, final

import attrs
from packaging.utils import canonicalize_name

from mtlcore._version import __version__
from mtlcore.errors import ConfigError, MtlError, UsageError, describe
from mtlcore.plugins.components import Component, PluginInfo, Selection
from mtlcore.plugins.loading import hook_manager, import_file, load_plugin
from mtlcore.plugins.not_found import not_found
from mtlcore.plugins.settings import NO_COMPONENT, nested_in, settings_of
from mtlcore.plugins.specs import KINDS, MethodSpec, singular
from mtlcore.plugins.structuring import structure
from mtlcore.tasks import LAYOUTS, Layout

STANDARD = "standard"


@final
@attrs.frozen
class _Found:
    """The entry point of a plugin, what is known before it is loaded, what its files require."""

    entry: importlib.metadata.EntryPoint
    info: PluginInfo
    requires: tuple[str, ...] = ()


@final
class Plugins:
    """All plugins, scanned and loaded when this is created.

    `standard`, which holds the core's own components, is always there and always first.

    Args:
        allow: Load only the installed plugins with these ids; None loads all.
        block: Do not load those with these ids.
        files: Paths of plugin files; never blocked, because they are named.
        entry_points: Use these instead of those of the installed distributions.
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
        #: Whether plugin files and loggers are used that the configuration of a run names.
        self.trusts_runs = False
        if STANDARD in self._block:
            raise UsageError(f"--no-plugin {STANDARD}: the core's own components always load")
        self._infos: list[PluginInfo] = []
        self._components: dict[str, list[Component]] = {kind: [] for kind in KINDS}
        self._files: dict[Path, PluginInfo] = {}
        self._hooks = hook_manager()
        own = PluginInfo(STANDARD, "mtlcore", __version__)
        self._load(own, lambda: importlib.import_module("mtlcore.standard.plugin"))
        if entry_points is None:
            damaged, found = _installed(_search_path())
        else:
            damaged, found = (), _in_order(entry_points)
        self._infos += damaged
        for one in found:
            self._load_entry_point(one)
        for file in files:
            self.load_file(file)

    @classmethod
    def from_environment(cls, block: Iterable[str] = ()) -> Self:
        """Scan with the allow list of `MTL_PLUGINS=a,b` (empty: only `standard`)."""
        listed = os.environ.get("MTL_PLUGINS")
        allow = None if listed is None else [word.strip() for word in listed.split(",")]
        return cls(allow=allow, block=block)

    @property
    def infos(self) -> tuple[PluginInfo, ...]:
        """Every plugin found, working or not, in the order of loading."""
        return tuple(self._infos)

    def trust_runs(self) -> None:
        """Use the plugin files and loggers that the configuration of a run names, from now on.

        They are programs, and the directory of a run may be anybody's.
        """
        self.trusts_runs = True

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
        """Return the component called `name` or `plugin/name`.

        Raises:
            UsageError: There is none, or the short name belongs to several plugins.
        """
        matches = self._find(kind, name)
        if not matches:
            names = [component.spec.name for component in self.all(kind)]
            raise not_found(singular(kind), name, names, self._infos)
        return self._only(matches, name)

    def default(self, kind: str, task_kind: str, layout: Layout | None = None) -> Component:
        """Return the default head, loss or metric for tasks of a kind.

        Args:
            kind: Of component.
            task_kind: The kind of task.
            layout: That a head must predict; None: any.

        Raises:
            UsageError: No component claims to be it, or several do and none of them is standard.
        """
        claims = [
            c
            for c in self.all(kind)
            if task_kind in getattr(c.spec, "default_for", ())
            and (layout is None or layout in getattr(c.spec, "layouts", LAYOUTS))
        ]
        claims = [c for c in claims if c.plugin == STANDARD] or claims
        if len(claims) == 1:
            return claims[0]
        names = ", ".join(c.full_name for c in claims)
        defaults = f"several default {kind}: {names}" if claims else f"no default {singular(kind)}"
        raise UsageError(
            f"tasks of kind {task_kind!r} have {defaults}; name one in the configuration"
        )

    def selection(self, word: str) -> Selection:
        """Return what `--plugin WORD` selects.

        The first that exists of: the method, or else the only balancer or the only logger, of a
        plugin file; the method that has the name of its plugin; a method of that name; the only
        balancer of a plugin, or else its only logger.

        Raises:
            UsageError: The word names none of these, or a plugin that did not load.
        """
        if word.endswith(".py"):
            return self._file_selection(self.load_file(word))
        methods = self._find("methods", f"{word}/{word}") or self._find("methods", word)
        if methods:
            return self._select(self._only(methods, word))
        for kind in ("balancers", "loggers"):
            own = [c for c in self.all(kind) if c.plugin == word]
            if len(own) == 1:
                return self._select(own[0])
        raise self._no_selection(word)

    def _find(self, kind: str, name: str) -> list[Component]:
        plugin, slash, short = name.rpartition("/")
        matches = [c for c in self._components[kind] if c.spec.name == short]
        return [c for c in matches if c.plugin == plugin] if slash else matches

    def _only(self, matches: list[Component], name: str) -> Component:
        if len(matches) == 1:
            return matches[0]
        what, names = singular(matches[0].kind), [f"{c.full_name} ({c.source})" for c in matches]
        raise UsageError(f"{what} {name!r} is ambiguous; write one of: {', '.join(names)}")

    def _select(self, component: Component) -> Selection:
        if isinstance(component.spec, MethodSpec):
            return Selection(component.plugin, component.spec.read(), component)
        unique = len(self._find(component.kind, component.spec.name)) == 1
        name = component.spec.name if unique else component.full_name
        if component.kind == "loggers":
            return Selection(component.plugin, component=component, logger=name)
        return Selection(component.plugin, {"balancer": {"name": name}}, component)

    def _file_selection(self, info: PluginInfo) -> Selection:
        if info.status != "ok":
            raise UsageError(str(info)) from info.error
        for kind in ("methods", "balancers", "loggers"):
            own = [c for c in self.all(kind) if c.plugin == info.id]
            chosen = [c for c in own if c.kind == "methods" and c.spec.name == info.id] or own
            if len(chosen) == 1:
                return self._select(chosen[0])
        return Selection(info.id)

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
        return not_found("plugin or method", word, names, self._infos)

    def _info(self, plugin: str) -> PluginInfo | None:
        # A working plugin first: a file may bear the id of one that is blocked.
        namesakes = [info for info in self._infos if info.id == plugin]
        return min(namesakes, key=lambda info: info.status != "ok", default=None)

    # Loading

    def load_file(self, path: str) -> PluginInfo:
        """Load a plugin file, once; if it fails, the reason is in the returned info."""
        file = _resolved(path)
        if file not in self._files:
            info = PluginInfo(_id_of(file), path)
            self._files[file] = self._load(info, lambda: import_file(file))
        return self._files[file]

    def load_file_of_run(self, path: str) -> PluginInfo:
        """Load a plugin file that the configuration of a run names, if that was asked for.

        Raises:
            UsageError: Nobody named the file or trusts the run, or its plugin is not to be loaded.
        """
        file = _resolved(path)
        plugin = _id_of(file)
        if file not in self._files and plugin in self._block:
            raise UsageError(
                f"{path}: the run's configuration names this plugin file, and --no-plugin {plugin} "
                "blocks it; without it, the run's components are missing"
            )
        if file not in self._files and not self.trusts_runs:
            raise UsageError(
                f"{path}: the run's configuration names this plugin file, a program that would run "
                "with your rights. Read it, or know who made the run, and add --trust (mtl eval "
                "takes --plugin FILE too)"
            )
        return self.load_file(path)

    def _load_entry_point(self, found: _Found) -> None:
        entry, info = found.entry, found.info
        if info.status != "ok":
            self._infos.append(info)
            return
        if entry.name == STANDARD or any(_same(info, earlier) for earlier in self._infos):
            return  # the core's own components, or a second dist-info of one distribution
        if entry.name in self._block:
            self._infos.append(attrs.evolve(info, status="blocked", reason="is blocked"))
        elif self._allow is not None and entry.name not in self._allow:
            reason = "is not in the allow list (MTL_PLUGINS)"
            self._infos.append(attrs.evolve(info, status="blocked", reason=reason))
        else:
            self._load(info, entry.load, found.requires)

    def _load(
        self, info: PluginInfo, load: Callable[[], Any], requires: tuple[str, ...] = ()
    ) -> PluginInfo:
        info, components = load_plugin(
            self._hooks, info, load, requires, namesake=self._info(info.id)
        )
        self._infos.append(info)
        for component in components:
            self._components[component.kind].append(component)
        return info


def create(kind: str, name: str, *positional: Any, **settings: Any) -> Any:
    """Build a component by its name, such as a balancer.

    Args:
        kind: The kind, as `mtl list` names it, such as "balancers".
        name: The component's name, or "plugin/name".
        positional: What the core would pass: for a head, its task and features.
        settings: The component's settings, as `mtl show KIND NAME` lists them; one that is another
            component is a dict of its name and settings.

    Raises:
        UsageError: There is no such component.
        ConfigError: It does not take these settings.
    """
    problems: list[str] = []
    make = _maker(Plugins.from_environment(), kind, name, settings, name, problems)
    if problems:
        raise ConfigError(problems)
    return make(*positional)


def _maker(
    plugins: Plugins,
    kind: str,
    name: str,
    given: Mapping[str, Any],
    path: str,
    problems: list[str],
) -> Callable[..., Any]:
    """Return what makes a component, with the components in its settings."""
    target = plugins.get(kind, name).load()
    values = structure(target, given, path, problems)
    for setting in settings_of(target):
        nested, table = nested_in(setting.annotation), values.get(setting.name)
        if nested is None or table is None:
            continue
        inner = {key: value for key, value in table.items() if key != "name"}
        where = f"{path}.{setting.name}"
        values[setting.name] = (
            None
            if table["name"] == NO_COMPONENT
            else _maker(plugins, nested.kind, table["name"], inner, where, problems)
        )
    return partial(target, **values)


def _search_path() -> tuple[tuple[str, int, int], ...]:
    """Return where distributions are looked for, and the state that each of these folders is in."""
    folders = []
    for path in sys.path:
        with suppress(OSError):
            state = os.stat(path or ".")
            folders.append((path, state.st_ino, state.st_mtime_ns))
    return tuple(folders)


@lru_cache(maxsize=4)
def _installed(
    folders: tuple[tuple[str, int, int], ...],
) -> tuple[tuple[PluginInfo, ...], tuple[_Found, ...]]:
    """Return what is wrong with distributions, and the entry points of all others.

    Reading their files takes longer than loading their plugins, and programs scan more than once
    (each `mtlcore.create` does). Whoever installs one changes the folder that it lies in.

    Args:
        folders: What `_search_path` returns now.
    """
    damaged: list[PluginInfo] = []
    found: list[importlib.metadata.EntryPoint] = []
    seen: set[str] = set()
    # One by one: any may be damaged.
    for dist in importlib.metadata.distributions():
        try:
            # The first one on the path hides others of its name, as it does for imports.
            name = getattr(dist, "_normalized_name", None)
            if name is not None and name in seen:
                continue
            seen |= {name} if name is not None else set()
            found += dist.entry_points.select(group="mtlcore")
        except Exception as error:
            place = Path(str(getattr(dist, "_path", "an unnamed distribution")))
            reason = f"has entry points that cannot be read ({describe(error)}): {place}"
            damaged.append(PluginInfo(place.stem, status="failed", reason=reason, error=error))
    return tuple(damaged), _in_order(found)


def _in_order(entry_points: Iterable[importlib.metadata.EntryPoint]) -> tuple[_Found, ...]:
    return tuple(map(_described, sorted(entry_points, key=lambda entry: entry.name)))


def _described(entry: importlib.metadata.EntryPoint) -> _Found:
    """Return what is known of a plugin before it is loaded."""
    dist = entry.dist
    if dist is None:
        return _Found(entry, PluginInfo(entry.name))
    try:
        metadata = dist.metadata
        name, version = metadata["Name"], metadata["Version"]
        requires = tuple(dist.requires or ())
        problem = "" if name and version else "it has no name or no version"
    except Exception as error:  # whatever is wrong with its files
        problem = describe(error)
    if problem:
        place = getattr(dist, "_path", "unknown")
        reason = f"is in a damaged distribution ({problem}): install it again, or delete {place}"
        return _Found(entry, PluginInfo(entry.name, status="failed", reason=reason))
    return _Found(entry, PluginInfo(entry.name, name, version), requires)


def _resolved(path: str) -> Path:
    file = Path(path)
    with suppress(RuntimeError):  # there is no home directory
        file = file.expanduser()
    return file.resolve()


def _id_of(file: Path) -> str:
    return file.stem.replace("_", "-")


def _same(one: PluginInfo, other: PluginInfo) -> bool:
    return one.id == other.id and (
        canonicalize_name(one.distribution) == canonicalize_name(other.distribution)
    )
