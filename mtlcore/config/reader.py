"""Reading tables of a merged configuration: finding components, checking settings, defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from mtlcore.config.merging import CORE, MergedConfig, leaves
from mtlcore.config.run_config import Chosen
from mtlcore.errors import MtlError, shown
from mtlcore.plugins import (
    NO_COMPONENT,
    REQUIRED,
    STANDARD,
    Component,
    NotPlain,
    Plugins,
    as_plain,
    convert,
    nested_in,
    settings_of,
    structure,
)


@final
class ConfigReader:
    """Reads a merged configuration, writing missing defaults into it.

    Methods do not raise for what the user wrote: each adds to `problems`, so that all problems are
    reported together.

    Args:
        plugins: Where components are looked up.
        merged: The configuration.

    Attributes:
        problems: One line each, `path: message`.
    """

    def __init__(self, plugins: Plugins, merged: MergedConfig) -> None:
        self.plugins, self.merged = plugins, merged
        self.problems = list(merged.problems)

    # Values

    def at(self, path: str) -> Any:
        """Return the value at a dotted path; None if there is none."""
        value: Any = self.merged.tree
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def table(self, path: str) -> dict[str, Any]:
        """Return the table at a path; an empty one if there is none."""
        value = self.at(path)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{path}: expected a table, got {shown(value)}")
            return {}
        return value

    def put(self, path: str, table: dict[str, Any], origin: str) -> None:
        """Set the table at a path."""
        *parents, last = path.split(".")
        parent_table = self.merged.tree
        for parent in parents:
            parent_table = parent_table.setdefault(parent, {})
        parent_table[last] = table
        for leaf in leaves(path, table):
            self.merged.origins.setdefault(leaf, origin)

    def value(self, path: str, annotation: Any) -> Any:
        """Return a single value as a type takes it; None if it does not fit."""
        return convert(self.at(path), annotation, path, self.problems)

    # Components

    def component(
        self,
        kind: str,
        path: str,
        core: Sequence[str] = (),
        table: dict[str, Any] | None = None,
    ) -> Chosen | None:
        """Return the component that a table names, with its settings.

        Args:
            kind: The kind of component.
            path: The path of the table.
            core: Keys of the table that the core itself reads.
            table: The table, where `path` leads into a list.
        """
        table = self.table(path) if table is None else table
        component = self.find(kind, table.get("name"), f"{path}.name")
        if component is None:
            return None
        given = {key: value for key, value in table.items() if key not in ("name", *core)}
        return self.with_settings(component, given, path, table=table)

    def components(self, kind: str, path: str) -> tuple[Chosen, ...]:
        """Return the components that a list of tables names, in order."""
        chosen = [
            self.component(kind, f"{path}[{number}]", table=table)
            for number, table in enumerate(self.tables(path))
        ]
        return tuple(one for one in chosen if one)

    def tables(self, path: str) -> Sequence[dict[str, Any]]:
        """Return the list of tables at a path; an empty one if it is something else."""
        tables = self.at(path)
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problems.append(f"{path}: expected a list of tables, each with a name")
            return ()
        return tables

    def find(self, kind: str, name: Any, path: str) -> Component | None:
        """Return the component with a name, imported; None if that fails."""
        if not isinstance(name, str):
            self.problems.append(f"{path}: name one of mtl list {kind} (got {shown(name)})")
            return None
        try:
            component = self.plugins.get(kind, name)
            component.load()
        except MtlError as error:
            self.problems.append(f"{path}: {error}")
            return None
        return component

    def with_settings(
        self,
        component: Component,
        given: Mapping[str, Any],
        path: str,
        *,
        reserved: Sequence[str] = (),
        others: Sequence[str] = (),
        table: dict[str, Any] | None = None,
    ) -> Chosen:
        """Check a component's settings and write its defaults into the table.

        Args:
            component: The component.
            given: The settings that the configuration names.
            path: The path of the table.
            reserved: Parameters that the core passes itself; no settings.
            others: Keys of the table that the core itself reads, for messages.
            table: The table, where `path` leads into a list.
        """
        target = component.load()
        known = {setting.name: setting for setting in settings_of(target)}
        given = dict(given)
        table = self.table(path) if table is None else table
        for key in [key for key in given if f"{path}.{key}" in self.merged.carried]:
            if not self._carries(component, key, given[key], path):
                del given[key]
                del table[key]
                self.merged.origins.pop(f"{path}.{key}", None)
        settings = structure(target, given, path, self.problems, reserved, others)
        for key, value in settings.items():
            if (nested := nested_in(known[key].annotation)) and value is not None:
                settings[key] = self._nested(nested.kind, f"{path}.{key}", table[key])
        names = [name for name in known if name not in reserved]
        self._fill_in(table, path, target, names, f"default of {component.spec.name}")
        return Chosen(component, settings)

    def _nested(self, kind: str, path: str, table: dict[str, Any]) -> Chosen | None:
        """Return the component that a setting of another one names; None for the name "none"."""
        if table["name"] != NO_COMPONENT:
            return self.component(kind, path, table=table)
        if settings := [key for key in table if key != "name"]:
            self.problems.append(
                f"{path}.{settings[0]}: {path}.name is {NO_COMPONENT!r}, which has no settings; "
                f"name one of mtl list {kind}"
            )
        return None

    def _carries(self, component: Component, key: str, value: Any, path: str) -> bool:
        """Return whether a setting that was written for another component holds for this one.

        What the core wrote is meant for its own components: it gives way to the default of a
        plugin's component, and where it does not fit. What a user or a preset wrote holds wherever
        there is such a setting.
        """
        target = component.load()
        own = {setting.name: setting.default for setting in settings_of(target)}
        if key not in own or self.merged.origins.get(f"{path}.{key}") != CORE:
            return key in own
        fits = key in structure(target, {key: value}, path, [])
        return fits and (component.plugin == STANDARD or own[key] is REQUIRED)

    # Records of the core

    def record(self, record: type[Any], path: str) -> Any:
        """Return a table as a record, with defaults written into it; None if it is wrong."""
        value = self.build(record, self.table(path), path)
        if value is not None:
            self.complete(record, path)
        return value

    def build(self, record: type[Any], given: Mapping[str, Any], path: str) -> Any:
        """Return a record with the given values; None if they are wrong."""
        problems_before = len(self.problems)
        values = structure(record, given, path, self.problems)
        if len(self.problems) > problems_before:
            return None
        try:
            return record(**values)
        except ValueError as error:  # the record's own validation
            self.problems.append(f"{path}: {error.args[0]}")
            return None

    def complete(self, record: type[Any], path: str) -> None:
        """Write a record's defaults into the table at a path."""
        names = [setting.name for setting in settings_of(record)]
        self._fill_in(self.table(path), path, record, names, CORE)

    def _fill_in(
        self, table: dict[str, Any], path: str, target: Any, names: Sequence[str], origin: str
    ) -> None:
        for setting in settings_of(target):
            name = setting.name
            if name in names and name not in table and setting.default is not REQUIRED:
                try:
                    table[name] = as_plain(setting.default)
                except NotPlain as error:
                    self.problems.append(
                        f"{path}.{name}: its default {setting.default!r} cannot be kept in "
                        f"config.toml ({error}); its author must choose another type"
                    )
                    continue
                for leaf in leaves(f"{path}.{name}", table[name]):
                    self.merged.origins.setdefault(leaf, origin)
