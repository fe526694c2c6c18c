"""A dataset inside of another one: the table that names it, read and opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import attrs

from mtlcore.data import Dataset, Sample
from mtlcore.errors import ConfigError, MtlError, did_you_mean
from mtlcore.plugins import Plugins, structure
from mtlcore.tasks import Task


@final
@attrs.frozen
class Source:
    """A dataset that another one reads from, not opened yet.

    Args:
        path: of its table in the configuration.
        name: of the dataset.
        target: its class.
        root: where it lies.
        settings: its own, converted.
        renamed: its tasks' names and what they are called here.
        splits: in which it takes part; None: in all.
    """

    path: str
    name: str
    target: type[Dataset]
    root: str | None
    settings: Mapping[str, Any]
    renamed: Mapping[str, str]
    splits: tuple[str, ...] | None

    def tasks(self) -> tuple[Task, ...]:
        """Return its tasks under the names they have here.

        Raises:
            ConfigError: `renamed` names a task that it does not have, or gives two one name.
        """
        declared = self.target.describe(self.root, **self.settings)
        names = [task.name for task in declared]
        unknown = [name for name in self.renamed if name not in names]
        if unknown:
            raise ConfigError(
                f"{self.path}.tasks.{name}: {self.name!r} declares no such task"
                f"{did_you_mean(name, names)} (it has: {', '.join(names)})"
                for name in unknown
            )
        here = [self.renamed.get(name, name) for name in names]
        if len(set(here)) < len(here):
            raise ConfigError([f"{self.path}.tasks: gives two tasks of {self.name!r} one name"])
        try:
            return tuple(
                attrs.evolve(task, name=name) for task, name in zip(declared, here, strict=True)
            )
        except ValueError as error:
            raise ConfigError([f"{self.path}.tasks: {error}"]) from error

    def open(self, split: str) -> Dataset:
        """Return the dataset, opened on a split.

        Raises:
            ConfigError: it refuses its settings, or repeats samples itself.
            DataError: raised by the dataset.
            UsageError: raised by the dataset.
        """
        make: Callable[..., Dataset] = self.target
        try:
            dataset = make(self.root, split, **self.settings)
        except ValueError as error:
            raise ConfigError([f"{self.path}: {error}"]) from error
        if dataset.repeats:
            # Its repeated samples would not be at the end of the whole, where they are looked for.
            raise ConfigError(
                [
                    f"{self.path}.name: {self.name!r} repeats its samples, and no dataset can be "
                    f"around it; name {self.name!r} as the run's dataset (data.name), and what it "
                    "is made of inside of it"
                ]
            )
        return dataset

    def here(self, sample: Sample) -> Sample:
        """Return a sample of the dataset with its labels under the names of their tasks here."""
        name = self.renamed.get
        return attrs.evolve(
            sample,
            targets={name(task, task): target for task, target in sample.targets.items()},
            valid={name(task, task): valid for task, valid in sample.valid.items()},
            sources={name(task, task): source for task, source in sample.sources.items()},
        )


def read_source(
    table: Mapping[str, Any],
    path: str,
    root: str | None,
    plugins: Plugins,
    problems: list[str],
    splits: tuple[str, ...] = (),
) -> Source | None:
    """Return the dataset that a table names; None where what it says cannot be used.

    Args:
        table: the dataset's `name`, its `root`, `tasks` (new names for some of its tasks), `splits`
            (in which it takes part) and its own settings.
        path: of the table, for messages.
        root: of a dataset that names none.
        plugins: where the dataset is found.
        problems: gets a message for each thing that is wrong.
        splits: those that `splits` may name; none: there is no such key.
    """
    name, own_root = table.get("name"), table.get("root", root)
    renamed, chosen = table.get("tasks", {}), table.get("splits") if splits else None
    problems += _wrong_types(path, name, own_root, renamed)
    listed = isinstance(chosen, list | tuple) and all(split in splits for split in chosen)
    if chosen is not None and not (listed and chosen):
        problems.append(f"{path}.splits: expected some of {', '.join(splits)}, got {chosen!r}")
    if not isinstance(name, str):
        return None
    try:
        target = plugins.get("datasets", name).load()
    except MtlError as error:
        problems.append(f"{path}.name: {error}")
        return None
    own = {"name", "root", "tasks", *(["splits"] if splits else [])}
    given = {key: value for key, value in table.items() if key not in own}
    settings = structure(target, given, path, problems)
    return Source(path, name, target, own_root, settings, renamed, chosen)


def _wrong_types(path: str, name: Any, root: Any, renamed: Any) -> Iterator[str]:
    if not isinstance(name, str):
        yield f"{path}.name: name a dataset, one of mtl list datasets (got {name!r})"
    if not isinstance(root, str | None):
        yield f"{path}.root: expected a folder or URL, got {root!r}"
    if not isinstance(renamed, Mapping) or not all(isinstance(n, str) for n in renamed.values()):
        yield f"{path}.tasks: expected a table of new names, got {renamed!r}"
