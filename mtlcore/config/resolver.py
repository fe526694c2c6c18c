"""The configuration of a run: core defaults < plugin presets < file < --set.

What the layers say together is checked and completed; all problems are reported at once, each with
its path.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mtlcore.config.merging import CORE_DEFAULTS, Layer, Merged, leaves
from mtlcore.config.schema import DataConfig, InitialConfig, TrainingConfig
from mtlcore.errors import ConfigError, MtlError, UsageError, did_you_mean
from mtlcore.plugins import (
    REQUIRED,
    Component,
    Plugins,
    Selection,
    settings_of,
    singular,
    structure,
)
from mtlcore.tasks import Task


@attrs.frozen
class Chosen:
    """A component with the settings it will be made with.

    Args:
        component: where it comes from.
        settings: converted to what its target takes, defaults left out.
    """

    component: Component
    settings: Mapping[str, Any]

    def make(self, *positional: Any, **extra: Any) -> Any:
        """The component itself; `positional` comes from the core.

        Raises:
            UsageError: it refuses a setting's value.
        """
        target = self.component.load()
        try:
            return target(*positional, **self.settings, **extra)
        except ValueError as error:
            name = f"{singular(self.component.kind)} {self.component.spec.name!r}"
            raise UsageError(f"{name}: {error}") from error


@attrs.frozen(kw_only=True)
class RunConfig:
    """A whole, checked configuration.

    Args:
        tree: every value as TOML, defaults of components included.
        origins: path -> where the value comes from.
        notes: what was replaced or dropped on the way, for people.
        tasks: of the run, in order.
        initial: None: weights are drawn, and all tasks learn.
    """

    tree: Mapping[str, Any]
    origins: Mapping[str, str]
    notes: tuple[str, ...]
    method: str
    seed: int
    device: str
    tasks: tuple[Task, ...]
    data: DataConfig
    dataset: Chosen
    backbone: Chosen
    heads: Mapping[str, Chosen]
    losses: Mapping[str, Chosen]
    metrics: Mapping[str, tuple[Chosen, ...]]
    cross_task: tuple[Chosen, ...]
    chain: tuple[Chosen, ...]
    update_every: int
    episodes: Chosen
    optimizer: Chosen
    training: TrainingConfig
    initial: InitialConfig | None = None

    @property
    def learning(self) -> tuple[str, ...]:
        """Names of the tasks that learn; the others are evaluated only."""
        if self.initial is None or self.initial.train == "all":
            return tuple(task.name for task in self.tasks)
        return tuple(task.name for task in self.tasks if task.name in self.initial.new)


def resolve(
    plugins: Plugins, selected: Sequence[str] = (), layers: Sequence[Layer] = ()
) -> RunConfig:
    """Merge, check and complete a configuration.

    Args:
        plugins: all there are; plugin files named by the layers are loaded into it.
        selected: words of `--plugin`, in order.
        layers: files, then --set.

    Raises:
        ConfigError: with every problem found.
        UsageError: a plugin that cannot be selected.
    """
    for layer in layers:
        listed = layer.values.get("plugins", ())
        if not isinstance(listed, list | tuple):
            raise ConfigError([f"plugins: expected a list of plugin files, got {listed!r}"])
        for path in listed:
            info = plugins.load_file(str(path))
            if info.status != "ok":
                raise UsageError(f"plugins ({layer.origin}): {info}") from info.error
    selections = [plugins.selection(word) for word in selected]
    merged = Merged()
    merged.add(Layer("core", CORE_DEFAULTS))
    for word, selection in zip(selected, selections, strict=True):
        merged.add(Layer(f"plugin {word}", selection.preset))
    labels = {"method": "+".join(_label(word) for word in selected)} if selected else {}
    files = [word for word in selected if word.endswith(".py")]
    merged.add(Layer("--plugin", labels | ({"plugins": files} if files else {})))
    for layer in layers:
        merged.add(layer)
    return _Resolver(plugins, merged, selections).run()


def _label(word: str) -> str:
    return Path(word).stem if word.endswith(".py") else word.replace("/", "-")


class _Resolver:
    """Checks a merged tree and picks the components it names."""

    def __init__(self, plugins: Plugins, merged: Merged, selections: Sequence[Selection]) -> None:
        self._plugins, self._merged, self._selections = plugins, merged, selections
        self._tree = merged.tree
        self._problems: list[str] = []

    def run(self) -> RunConfig:
        tree = self._tree
        for key in tree:
            if key not in CORE_DEFAULTS:
                hint = did_you_mean(key, CORE_DEFAULTS)
                self._problems.append(f"{key}: unknown{hint} (known: {', '.join(CORE_DEFAULTS)})")
        data, dataset = self._data()
        tasks = self._tasks(dataset)
        backbone = self._component("backbones", "model.backbone")
        self._model_keys(tasks)
        heads = self._per_task("heads", tasks, "model.heads", "model.head")
        losses = self._per_task("losses", tasks, "losses", None)
        metrics = self._metrics(tasks)
        cross_task = self._list("losses", "cross_task")
        chain, update_every = self._balancing()
        episodes = self._component("episode-samplers", "episodes")
        optimizer = self._component("optimizers", "optimizer")
        training = self._record(TrainingConfig, "training")
        if training and training.epochs is None and training.steps is None:
            self._problems.append("training: set epochs or steps")
        initial = self._initial(tasks)
        seed, device, method = (self._value(k, t) for k, t in _SCALARS.items())
        self._check_required(chain)
        if self._problems:
            raise ConfigError(self._problems)
        assert data and dataset and backbone and episodes and optimizer and training
        return RunConfig(
            tree=_without_none(tree),
            origins=dict(self._merged.origins),
            notes=tuple(self._merged.notes),
            method=method,
            seed=seed,
            device=device,
            tasks=tasks,
            data=data,
            dataset=dataset,
            backbone=backbone,
            heads=heads,
            losses=losses,
            metrics=metrics,
            cross_task=cross_task,
            chain=chain,
            update_every=update_every,
            episodes=episodes,
            optimizer=optimizer,
            training=training,
            initial=initial,
        )

    # The parts

    def _data(self) -> tuple[DataConfig | None, Chosen | None]:
        table = self._table("data")
        if "size" in table:
            table["size"] = _size(table["size"])
        core = {field.name for field in attrs.fields(DataConfig)}
        own = {key: value for key, value in table.items() if key in core}
        data = self._build(DataConfig, own, "data")
        rest = {key: value for key, value in table.items() if key not in core}
        component = self._find("datasets", table.get("name"), "data.name")
        if component is None:
            return data, None
        target = component.load()
        reserved = (*(["size"] if target.renders_size else []),
                    *(["samples"] if target.unlimited else []))  # fmt: skip
        chosen = self._settings(component, rest, "data", reserved, others=sorted(core))
        if data is not None:
            self._complete("data", DataConfig, reserved=())
        return data, chosen

    def _tasks(self, dataset: Chosen | None) -> tuple[Task, ...]:
        if dataset is None:
            return ()
        root = self._table("data").get("root")
        try:
            declared = dataset.component.load().describe(root, **dataset.settings)
        except ConfigError as error:
            self._problems += error.problems
            return ()
        except MtlError as error:
            self._problems.append(f"data: {error}")
            return ()
        by_name = {task.name: task for task in declared}
        wanted = self._value("tasks", list) or list(by_name)
        for name in wanted:
            if name not in by_name:
                hint = did_you_mean(str(name), by_name)
                self._problems.append(
                    f"tasks: the dataset {dataset.component.spec.name!r} declares no task "
                    f"{name!r}{hint} (it has: {', '.join(by_name)})"
                )
        self._tree["tasks"] = [name for name in wanted if name in by_name]
        return tuple(by_name[name] for name in self._tree["tasks"])

    def _initial(self, tasks: Sequence[Task]) -> InitialConfig | None:
        if not self._table("initial"):
            return None
        initial: InitialConfig | None = self._record(InitialConfig, "initial")
        if initial is None:
            return None
        names = [task.name for task in tasks]
        for name in initial.new:
            if names and name not in names:
                hint = did_you_mean(name, names)
                self._problems.append(f"initial.new: the run has no task {name!r}{hint}")
        if initial.train != "all" and not initial.new:
            self._problems.append(
                f"initial.train: {initial.train!r} trains the tasks that initial.new names, and it "
                "names none"
            )
        return initial

    def _model_keys(self, tasks: Sequence[Task]) -> None:
        for key in self._table("model"):
            if key not in ("backbone", "head", "heads"):
                hint = did_you_mean(key, ("backbone", "head", "heads"))
                self._problems.append(f"model.{key}: unknown{hint} (known: backbone, head, heads)")
        names = [task.name for task in tasks]
        for path in ("model.heads", "losses", "metrics"):
            for key in self._table(path):
                if names and key not in names:
                    hint = did_you_mean(key, names)
                    self._problems.append(f"{path}.{key}: the run has no such task{hint}")

    def _per_task(
        self, kind: str, tasks: Sequence[Task], path: str, fallback: str | None
    ) -> dict[str, Chosen]:
        result = {}
        for task in tasks:
            at = f"{path}.{task.name}"
            table = self._table(at)
            if not table and fallback and self._table(fallback):
                table = copy.deepcopy(self._table(fallback))
                self._put(at, table, self._merged.origins.get(f"{fallback}.name", "core"))
            try:
                if not table.get("name"):
                    component = self._plugins.default(kind, task.kind)
                    self._put(at, {"name": component.spec.name, **table}, "default")
            except UsageError as error:
                self._problems.append(f"{at}.name: {error}")
                continue
            chosen = self._component(kind, at)
            if chosen is None:
                continue
            self._check_serves(chosen, task, at)
            result[task.name] = chosen
        return result

    def _check_serves(self, chosen: Chosen, task: Task, path: str) -> None:
        spec = chosen.component.spec
        serves = getattr(spec, "serves", None)
        if serves is None or not serves(task.kind):
            self._problems.append(
                f"{path}.name: {spec.name!r} does not serve tasks of kind {task.kind!r}"
            )

    def _metrics(self, tasks: Sequence[Task]) -> dict[str, tuple[Chosen, ...]]:
        """One metric of a task is a table, several are a list of tables."""
        listed = [task for task in tasks if isinstance(self._at(f"metrics.{task.name}"), list)]
        others = [task for task in tasks if task not in listed]
        found: dict[str, tuple[Chosen, ...]] = {
            name: (chosen,)
            for name, chosen in self._per_task("metrics", others, "metrics", None).items()
        }
        for task in listed:
            path = f"metrics.{task.name}"
            if not self._at(path):
                self._problems.append(f"{path}: an empty list; name at least one metric")
            found[task.name] = self._list("metrics", path)
            for number, chosen in enumerate(found[task.name]):
                self._check_serves(chosen, task, f"{path}[{number}]")
        return found

    def _balancing(self) -> tuple[tuple[Chosen, ...], int]:
        table = self._table("balancer")
        every = table.get("update_every", 1)
        if type(every) is not int or every < 1:
            self._problems.append(f"balancer.update_every: expected an integer >= 1, got {every!r}")
            every = 1
        if "chain" not in table:
            chosen = self._component("balancers", "balancer", core=("update_every",))
            return ((chosen,) if chosen else ()), every
        for key in table:
            if key not in ("chain", "update_every"):
                self._problems.append(
                    f"balancer.{key}: a chain has no settings of its own; write them in its links"
                )
        return self._list("balancers", "balancer.chain"), every

    def _list(self, kind: str, path: str) -> tuple[Chosen, ...]:
        links = self._at(path)
        if not isinstance(links, list) or not all(isinstance(link, Mapping) for link in links):
            self._problems.append(f"{path}: expected a list of tables, each with a name")
            return ()
        found = [self._component(kind, f"{path}[{i}]", table=link) for i, link in enumerate(links)]
        return tuple(chosen for chosen in found if chosen)

    def _check_required(self, chain: Sequence[Chosen]) -> None:
        used = {f"balancers/{chosen.component.spec.name}" for chosen in chain}
        for path, kind in (("episodes", "episode-samplers"), ("optimizer", "optimizers"),
                           ("model.backbone", "backbones"), ("data", "datasets")):  # fmt: skip
            used.add(f"{kind}/{self._table(path).get('name')}")
        used |= {f"losses/{link.get('name')}" for link in self._at("cross_task") or ()}
        for method in (selection.method for selection in self._selections):
            for needed in method.requires if method else ():
                if method and needed not in used:
                    self._problems.append(
                        f"method {method.name!r} is not itself without {needed}: "
                        + self._advice(needed, chain)
                    )

    def _advice(self, needed: str, chain: Sequence[Chosen]) -> str:
        from mtlcore.balancing import LossBalancer

        kind, _, name = needed.partition("/")
        if kind != "balancers":
            return f"it needs {needed}"
        names = [chosen.component.spec.name for chosen in chain]
        final = [c for c in chain if not _is_a(c.component, LossBalancer)]
        if final and not _is_a(self._plugins.get(kind, name), LossBalancer):
            return (
                f"{name} and {final[-1].component.spec.name} both weigh task gradients, and a run "
                "can have one of such balancers: choose one"
            )
        # A balancer of gradients ends a chain.
        first = _is_a(self._plugins.get(kind, name), LossBalancer)
        ordered = [name, *names] if first else [*names, name]
        links = ", ".join(f'{{name = "{link}"}}' for link in ordered)
        return f"write balancer.chain = [{links}] (with its settings) instead"

    # Looking up, checking, completing

    def _component(
        self,
        kind: str,
        path: str,
        core: Sequence[str] = (),
        table: dict[str, Any] | None = None,
    ) -> Chosen | None:
        table = self._table(path) if table is None else table
        component = self._find(kind, table.get("name"), f"{path}.name")
        if component is None:
            return None
        own = {key: value for key, value in table.items() if key not in ("name", *core)}
        return self._settings(component, own, path, (), table)

    def _find(self, kind: str, name: Any, path: str) -> Component | None:
        if not isinstance(name, str):
            self._problems.append(f"{path}: name one of mtl list {kind} (got {name!r})")
            return None
        try:
            component = self._plugins.get(kind, name)
            component.load()
        except MtlError as error:
            self._problems.append(f"{path}: {error}")
            return None
        return component

    def _settings(
        self,
        component: Component,
        given: Mapping[str, Any],
        path: str,
        reserved: Sequence[str],
        table: dict[str, Any] | None = None,
        others: Sequence[str] = (),
    ) -> Chosen:
        target = component.load()
        known = {setting.name: setting for setting in settings_of(target)}
        given = dict(given)
        table = self._table(path) if table is None else table
        for key in [key for key in given if f"{path}.{key}" in self._merged.carried]:
            if key not in known:
                # It came along from another component's table; this one has no such setting.
                del given[key]
                del table[key]
                self._merged.origins.pop(f"{path}.{key}", None)
        settings = structure(target, given, path, self._problems, reserved, others)
        for name, setting in known.items():
            if name not in table and name not in reserved and setting.default is not REQUIRED:
                table[name] = _plain(setting.default)
                for leaf in leaves(f"{path}.{name}", table[name]):
                    self._merged.origins.setdefault(leaf, f"default of {component.spec.name}")
        return Chosen(component, settings)

    def _record(self, record: type[Any], path: str) -> Any:
        value = self._build(record, self._table(path), path)
        if value is not None:
            self._complete(path, record, ())
        return value

    def _build(self, record: type[Any], given: Mapping[str, Any], path: str) -> Any:
        before = len(self._problems)
        values = structure(record, given, path, self._problems)
        if len(self._problems) > before:
            return None
        try:
            return record(**values)
        except ValueError as error:  # the record's own validation
            self._problems.append(f"{path}: {error.args[0]}")
            return None

    def _complete(self, path: str, record: type[Any], reserved: Sequence[str]) -> None:
        table = self._table(path)
        for setting in settings_of(record):
            if setting.name not in table and setting.default is not REQUIRED:
                table[setting.name] = _plain(setting.default)
                for leaf in leaves(f"{path}.{setting.name}", table[setting.name]):
                    self._merged.origins.setdefault(leaf, "core")

    def _value(self, key: str, kind: type) -> Any:
        value = self._tree.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            self._problems.append(f"{key}: expected {kind.__name__}, got {value!r}")
            return kind()
        return value

    def _at(self, path: str) -> Any:
        value: Any = self._tree
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def _table(self, path: str) -> dict[str, Any]:
        value = self._at(path)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._problems.append(f"{path}: expected a table, got {value!r}")
            return {}
        return value

    def _put(self, path: str, table: dict[str, Any], origin: str) -> None:
        *parents, last = path.split(".")
        at = self._tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = table
        for leaf in leaves(path, table):
            self._merged.origins.setdefault(leaf, origin)


def _is_a(component: Component, base: type) -> bool:
    target = component.load()
    return isinstance(target, type) and issubclass(target, base)


_SCALARS: dict[str, type] = {"seed": int, "device": str, "method": str}


def _size(value: Any) -> Any:
    """`96x128` as well as [96, 128]."""
    found = re.fullmatch(r"(\d+)x(\d+)", value) if isinstance(value, str) else None
    return [int(found[1]), int(found[2])] if found else value


def _plain(value: Any) -> Any:
    """A default as TOML would have it."""
    if attrs.has(type(value)):
        return {key: _plain(inner) for key, inner in attrs.asdict(value).items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def annotated(toml: str, origins: Mapping[str, str]) -> str:
    """TOML text with the origin of each value as a comment behind it."""
    lines, table = [], ""
    for line in toml.splitlines():
        heading = re.fullmatch(r"\[+([\w.-]+)\]+", line)
        entry = re.match(r"([\w-]+) = ", line)
        if heading:
            table = heading[1]
        path = ".".join(part for part in (table, entry[1] if entry else "") if part)
        origin = origins.get(path) if entry else None
        lines.append(f"{line}  # {origin}" if origin else line)
    return "\n".join(lines)
