"""The layers of a configuration and what they are together: each value with its origin.

Tables that name a component (`[data]`, `[model.backbone]`, `[balancer]` ...) hold `name` and that
component's settings; when a later layer changes the name, the settings of the earlier one go,
except those that every component of the place understands (`CARRIED`).
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

import attrs

from mtlcore.config.schema import DataConfig
from mtlcore.errors import ConfigError, UsageError
from mtlcore.storage import flatten

CORE_DEFAULTS: dict[str, Any] = {
    "method": "default",
    "seed": 0,
    "device": "auto",
    "tasks": [],
    "plugins": [],
    "data": {"name": "rooms", "train": 1600, "val": 200},
    "model": {"backbone": {"name": "segnet", "width": 0.0625}, "head": {}, "heads": {}},
    "losses": {},
    "metrics": {},
    "cross_task": [],
    "balancer": {"name": "equal"},
    "episodes": {"name": "joint"},
    "optimizer": {"name": "adam", "lr": 2e-3},
    "training": {"steps": 800},
    "initial": {},
}

#: Settings of a component's table that survive a change of its name; one that the new component
#: does not have is dropped then.
CARRIED: dict[str, frozenset[str]] = {
    "data": frozenset({"root", "spec"}),
    "model.backbone": frozenset({"width"}),
    "optimizer": frozenset({"lr"}),
}


@attrs.frozen
class Layer:
    """Some values and where they come from."""

    origin: str
    values: Mapping[str, Any]


def file_layer(path: str) -> Layer:
    """A configuration file.

    Raises:
        UsageError: it is missing or not TOML.
    """
    try:
        return Layer(path, tomllib.loads(Path(path).read_text("utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path}: not TOML: {error}") from error


def set_layer(assignments: Iterable[str]) -> Layer:
    """The values of `--set path=value`: TOML where it is TOML, a string otherwise.

    Raises:
        ConfigError: one of them has no `=`.
    """
    values: dict[str, Any] = {}
    problems = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            problems.append(f"--set {assignment}: write it as path=value")
            continue
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        table = values
        *parents, last = path.split(".")
        for parent in parents:
            inner = table.setdefault(parent, {})
            if not isinstance(inner, dict):
                problems.append(f"--set {assignment}: {parent} was set to {inner!r} before")
                inner = {}
            table = inner
        table[last] = value
    if problems:
        raise ConfigError(problems)
    return Layer("--set", values)


@final
class Merged:
    """Layers laid over one another.

    Attributes:
        tree: the values.
        origins: path -> where the value comes from.
        carried: paths of values that came along from another component's table.
        notes: what was replaced on the way, for people.
    """

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.carried: set[str] = set()
        self.notes: list[str] = []

    def add(self, layer: Layer) -> None:
        """Lay one more over the others."""
        training = layer.values.get("training", {})
        for this, other in (("epochs", "steps"), ("steps", "epochs")):
            # The length of a run is one choice: the later layer's.
            if isinstance(training, Mapping) and this in training and other not in training:
                self._drop(f"training.{other}")
        self._merge(self.tree, layer.values, "", layer.origin)

    def _merge(self, tree: dict[str, Any], values: Mapping[str, Any], at: str, why: str) -> None:
        self._rename(tree, values, at, why)
        for key, value in values.items():
            path = f"{at}.{key}" if at else key
            if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
                self._merge(tree[key], value, path, why)
                continue
            tree[key] = copy.deepcopy(value)
            self.carried.discard(path)
            for leaf in leaves(path, value):
                self.origins[leaf] = why

    def _rename(self, tree: dict[str, Any], values: Mapping[str, Any], at: str, why: str) -> None:
        old, new = (table.get("name") for table in (tree, values))
        if not isinstance(new, str | None):  # a table of tasks, one of which is called "name"
            return
        if at == "balancer" and "chain" in values and tree:
            self._replace(tree, at, {"update_every"})
        elif at == "balancer" and new is not None and "chain" in tree:
            names = [str(link.get("name")) for link in tree["chain"] if isinstance(link, Mapping)]
            self.notes.append(f"balancer {new} ({why}) replaces the chain {' > '.join(names)}")
            self._replace(tree, at, {"update_every"})
        elif new is not None and old is not None and new != old:
            carried = CARRIED.get(at, frozenset())
            core = {"update_every"} if at == "balancer" else _core_keys(at)
            if at == "balancer" and self.origins.get("balancer.name") != "core":
                self.notes.append(f"balancer {new} ({why}) replaces {old}")
            if at == "data":
                # The core's numbers are for its own rooms; other data is used whole.
                core -= {key for key in core if self.origins.get(f"data.{key}") == "core"}
            self._replace(tree, at, carried | core)
            self.carried |= {f"{at}.{key}" for key in tree if key in carried}

    def _replace(self, tree: dict[str, Any], at: str, keep: Iterable[str]) -> None:
        for key in [key for key in tree if key not in set(keep)]:
            self._drop(f"{at}.{key}")

    def _drop(self, path: str) -> None:
        *parents, last = path.split(".")
        table = self.tree
        for parent in parents:
            table = table.get(parent, {})
        table.pop(last, None)
        for origin in [o for o in self.origins if o == path or o.startswith(path + ".")]:
            del self.origins[origin]


def _core_keys(at: str) -> frozenset[str]:
    names = {field.name for field in attrs.fields(DataConfig)} if at == "data" else set()
    return frozenset(names - {"name"})


def leaves(path: str, value: Any) -> list[str]:
    """Return the paths of the values in a table; the table's own where it is empty."""
    return [*flatten({path: value})] or [path]
