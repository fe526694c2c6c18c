"""The layers of a configuration, and merging them: each value keeps its origin.

A table that names a component (`[data]`, `[model.backbone]`, `[balancer]` ...) holds `name` and the
component's settings. When a later layer changes the name, the settings of the earlier component are
dropped, except those that most components of the kind share (`CARRIED`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

import attrs

from mtlcore.config.schema import BALANCING_KEYS, DataConfig
from mtlcore.errors import ConfigError, UsageError, shown
from mtlcore.storage import decoded, flatten

#: The origin of the core's own layer.
CORE = "core"
CORE_DEFAULTS: dict[str, Any] = {
    "method": "default",
    "seed": 0,
    "device": "auto",
    "tasks": [],
    "plugins": [],
    "data": {"name": "rooms", "train": 1600, "val": 200},
    "model": {
        "backbone": {"name": "segnet", "width": 0.0625},
        "neck": {"name": "none"},
        "head": {},
        "heads": {},
        "freeze": [],
    },
    "losses": {},
    "metrics": {},
    "cross_task": [],
    "balancer": {"name": "equal"},
    "episodes": {"name": "joint"},
    "optimizer": {"name": "adam", "lr": 2e-3},
    "training": {"steps": 800},
    "loggers": [],
    "initial": {},
    "teachers": {},
}

#: What is a table in every layer; outer ones before those inside.
_TABLES = (
    *(key for key, value in CORE_DEFAULTS.items() if isinstance(value, dict)),
    *(f"model.{key}" for key in ("backbone", "neck", "head", "heads")),
)
#: Settings that survive a change of the component's name, if the new component has them. Of the
#: core's own values, those of a plugin's component are not replaced (`ConfigReader`).
CARRIED: dict[str, frozenset[str]] = {
    "data": frozenset({"root", "spec"}),
    "model.backbone": frozenset({"width"}),
    "optimizer": frozenset({"lr"}),
}
# Classes to ignore are named for the dataset that has them.
_DATA_KEYS = frozenset(field.name for field in attrs.fields(DataConfig)) - {
    "name",
    "ignore_classes",
}


@attrs.frozen
class Layer:
    """Values of a configuration from one source.

    Args:
        origin: The source, for people.
        values: Nested tables, as TOML has them.
        of_run: Whether it is what a run's directory holds, which may be anybody's: what it names
            beyond components is loaded only if it was asked for (`Plugins.trust_runs`).
    """

    origin: str
    values: Mapping[str, Any]
    of_run: bool = False


def file_layer(path: str) -> Layer:
    """Read a configuration file.

    Raises:
        UsageError: The file cannot be read, or is not TOML.
    """
    try:
        return Layer(path, decoded(Path(path).read_bytes(), "TOML"))
    except OSError as error:
        raise UsageError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path}: not TOML: {error}") from error


def set_layer(assignments: Iterable[str]) -> Layer:
    """Read assignments `path=value` as of `--set`; a value that is not TOML is a string.

    Raises:
        ConfigError: An assignment has no `=`, or contradicts an earlier one.
    """
    values: dict[str, Any] = {}
    problems = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            problems.append(f"--set {assignment}: write it as path=value")
            continue
        try:
            value = decoded(f"value = {text}", "TOML")["value"]
        except ValueError:
            value = text
        table = values
        *parents, last = path.split(".")
        for parent in parents:
            inner = table.setdefault(parent, {})
            if not isinstance(inner, dict):
                problems.append(f"--set {assignment}: {parent} was set to {shown(inner)} before")
                inner = {}
            table = inner
        table[last] = value
    if problems:
        raise ConfigError(problems)
    return Layer("--set", values)


@final
class MergedConfig:
    """Layers merged in order; later values win.

    Attributes:
        tree: The values, as nested tables.
        origins: Path -> where the value comes from.
        carried: Paths of settings that were written for a component of another name.
        notes: One line for each component that a later layer replaced.
        problems: One line for each value that stands where a table must.
    """

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.carried: set[str] = set()
        self.notes: list[str] = []
        self.problems: list[str] = []

    def add(self, layer: Layer) -> None:
        """Merge one more layer over the others."""
        values = self._with_tables(layer)
        training = values.get("training", {})
        for this, other in (("epochs", "steps"), ("steps", "epochs")):
            # The length of a run is one choice: the later layer's.
            if this in training and other not in training:
                self.drop(f"training.{other}")
        self._merge(self.tree, values, "", layer.origin)

    def add_logger(self, name: str, origin: str) -> None:
        """Add a logger to the list, where it is not there yet."""
        loggers = self.tree["loggers"]
        if not isinstance(loggers, list) or any(
            isinstance(table, Mapping) and table.get("name") == name for table in loggers
        ):
            return  # what is no list is told later
        before = self.origins["loggers"]
        self.origins["loggers"] = f"{before}, {origin}" if loggers else origin
        loggers.append({"name": name})

    def _with_tables(self, layer: Layer) -> dict[str, Any]:
        """Return the values of a layer without those that stand where a table must."""
        values = dict(layer.values)
        for path in _TABLES:
            *parents, last = path.split(".")
            table = values
            for parent in parents:
                table = table.get(parent, {})
            if not isinstance(table.get(last, {}), Mapping):
                wrong = shown(table.pop(last))
                self.problems.append(f"{path}: expected a table, got {wrong} ({layer.origin})")
            elif last in table:
                table[last] = dict(table[last])
        return values

    def _merge(
        self, table: dict[str, Any], values: Mapping[str, Any], at: str, origin: str
    ) -> None:
        self._change_component(table, values, at, origin)
        for key, value in values.items():
            path = f"{at}.{key}" if at else key
            if isinstance(value, Mapping) and isinstance(table.get(key), dict):
                self._merge(table[key], value, path, origin)
                continue
            table[key] = copy.deepcopy(value)
            self.carried.discard(path)
            for leaf in leaves(path, value):
                self.origins[leaf] = origin

    def _change_component(
        self, table: dict[str, Any], values: Mapping[str, Any], path: str, origin: str
    ) -> None:
        """Drop the settings of the component at a path if the values name another one."""
        name = values.get("name")
        if not isinstance(name, str | None):  # a table of tasks, one of which is called "name"
            return
        if path == "balancer":
            self._change_balancer(table, values, origin)
        elif name is not None and table.get("name") not in (None, name):
            carried = CARRIED.get(path, frozenset())
            keys = _DATA_KEYS if path == "data" else frozenset()
            # The core's defaults of [data] are for its own rooms; other data is used whole.
            set_by_user = {key for key in keys if self.origins.get(f"data.{key}") != CORE}
            self._keep_only(table, path, carried | set_by_user)
            self.carried |= {f"{path}.{key}" for key in table if key in carried}

    def _change_balancer(
        self, table: dict[str, Any], values: Mapping[str, Any], origin: str
    ) -> None:
        """Drop what is there if the values name another balancer, or a chain of them."""
        old, new = table.get("name"), values.get("name")
        replaced = None  # what to tell people of
        if "chain" not in values:
            if new is None or ("chain" not in table and old in (None, new)):
                return
            if "chain" in table:
                links = [link for link in table["chain"] if isinstance(link, Mapping)]
                replaced = "the chain " + " > ".join(map(name_of, links))
            elif self.origins.get("balancer.name") != CORE:
                replaced = name_of(table)
        if replaced:
            self.notes.append(f"balancer {new} ({origin}) replaces {replaced}")
        self._keep_only(table, "balancer", BALANCING_KEYS)

    def _keep_only(self, table: dict[str, Any], path: str, keep: Iterable[str]) -> None:
        for key in [key for key in table if key not in set(keep)]:
            self.drop(f"{path}.{key}")

    def drop(self, path: str) -> None:
        """Remove a value or a table, with its origins."""
        *parents, last = path.split(".")
        table = self.tree
        for parent in parents:
            table = table.get(parent, {})
        table.pop(last, None)
        for dropped in [p for p in self.origins if p == path or p.startswith(path + ".")]:
            del self.origins[dropped]


def name_of(table: Mapping[str, Any]) -> str:
    """Return the component that a table names, as a message has it."""
    name = table.get("name")
    return name if isinstance(name, str) else shown(name)


def leaves(path: str, value: Any) -> list[str]:
    """Return the paths of the values in a table; the table's own where it is empty."""
    return [*flatten({path: value})] or [path]
