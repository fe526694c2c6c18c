"""Explaining that a name was not found: what it may mean, and which plugin may be missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

from mtlcore.errors import UsageError, did_you_mean
from mtlcore.plugins.catalogue import KNOWN
from mtlcore.plugins.components import PluginInfo

_MOST_LISTED = 15
_ALIKE = 0.75  # similarity from which one name resembles another


def not_found(
    what: str, name: str, names: Iterable[str], plugins: Sequence[PluginInfo]
) -> UsageError:
    """Return the error for a name that nothing has.

    It suggests similar names, plugins that would perhaps have brought the name, had they loaded,
    and those of this project that are not installed.

    Args:
        what: What was looked for, such as "balancer".
        name: Its name.
        names: The names there are.
        plugins: All plugins that were found, working or not.
    """
    names = sorted(set(names))
    ids = {info.id for info in plugins}
    missing = _not_installed(name, ids)
    not_installed = [] if missing else [plugin for plugin in KNOWN if plugin not in ids]
    hint = did_you_mean(name, names) or did_you_mean(name, not_installed)
    suspects = _suspects(name, plugins, explained=bool(hint or missing or "/" in name))
    parts = [f"no {what} {name!r}{hint}", *map(str, suspects)]
    if 0 < len(names) <= _MOST_LISTED:
        parts.append(f"available: {', '.join(names)}")
    if missing:
        parts.append(f"plugin {missing} is not installed: pip install mtlcore-plugin-{missing}")
    error = UsageError("; ".join(parts))
    error.__cause__ = suspects[0].error if suspects else None
    return error


def _suspects(name: str, plugins: Sequence[PluginInfo], explained: bool) -> list[PluginInfo]:
    """Return the plugins that would perhaps have brought the name, had they loaded."""
    broken = [info for info in plugins if info.status != "ok"]
    alike = [info for info in broken if _resembles(info.id, name)]
    return alike if alike or explained else broken


def _not_installed(name: str, ids: set[str]) -> str:
    """Return the plugin of this project that has the name and is not installed, if there is one."""
    plugin, _, short = name.rpartition("/")
    for known, names in KNOWN.items():
        if (plugin or short) in (known, *names) and known not in ids:
            return known
    return ""


def _resembles(plugin: str, name: str) -> bool:
    owner, slash, short = name.rpartition("/")
    if slash:
        return plugin == owner
    if plugin == short or short in KNOWN.get(plugin, ()):
        return True
    one, other = plugin.replace("-", ""), short.replace("-", "")
    return one in other or other in one or SequenceMatcher(None, one, other).ratio() > _ALIKE
